"""Video rewards, and the checkpoint of a small text-to-video model for trying them out.

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """Return the directory of the bundled checkpoint, in the format of diffusers' WanPipeline."""
    return Path(__file__).parent / "checkpoint"

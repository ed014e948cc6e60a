"""The embedded default of dgpo: a tiny trained text-to-image model, its world, its prompts and its detector.

Light on purpose: importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """Directory of the shipped checkpoint, in the format of diffusers' StableDiffusion3Pipeline."""
    return Path(__file__).parent / "checkpoint"

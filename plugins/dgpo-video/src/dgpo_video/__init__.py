"""Rewards on video, and a miniature of text-to-video to try them on.

Light on purpose: importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """Directory of the miniature's shipped checkpoint, in the format of diffusers' WanPipeline."""
    return Path(__file__).parent / "checkpoint"

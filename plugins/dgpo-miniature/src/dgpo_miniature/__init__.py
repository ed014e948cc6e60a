"""Tiny trained text-to-image models for quickstart and tests, with their synthetic data, prompts and detector.

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["World", "checkpoint_path"]

World = Literal["shapes", "signs", "blocks"]


def checkpoint_path(world: World = "shapes") -> Path:
    """Return the directory of a world's bundled checkpoint, in the format of diffusers' StableDiffusion3Pipeline."""
    return Path(__file__).parent / ("checkpoint" if world == "shapes" else f"checkpoint_{world}")

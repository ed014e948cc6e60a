"""The embedded default of dgpo: tiny trained text-to-image models, their worlds, prompts and detector.

Light on purpose: importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["World", "checkpoint_path"]

World = Literal["shapes", "signs"]


def checkpoint_path(world: World = "shapes") -> Path:
    """Directory of a world's shipped checkpoint, in the format of diffusers' StableDiffusion3Pipeline."""
    return Path(__file__).parent / {"shapes": "checkpoint", "signs": "checkpoint_signs"}[world]

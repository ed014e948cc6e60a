"""Generated media and prompts to check rewards and detectors with, besides their own examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_kit.contracts._assertions import normal

__all__ = ["SIDE", "SIZES", "drawn", "media_of_size", "prompts_about"]

SIDE = 64
SIZES = ((1, 1), (1, 9), (9, 1), (17, 40), (96, 64))
"""(height, width) in pixels: single pixels, lines, odd sides, portrait."""
TEXTS = ("a photo of a red circle", "a photo of two blue squares", "a dog left of a bench", "a green traffic light")


def drawn(shape: tuple[int, ...]) -> Tensor:
    """Return noise, black, white, and dark with a bright half: float32 [4, *shape] in [0, 1]."""
    noise = (0.5 + 0.25 * normal(*shape, seed=7)).clamp(0, 1)
    halves = torch.full(shape, 0.1)
    halves[..., shape[-1] // 2 :] = 0.9
    return torch.stack([noise, torch.zeros(shape), torch.ones(shape), halves])


def media_of_size(medium: str, height: int, width: int, frames: int = 2) -> Tensor:
    """Return noise, black and white: float32 [3, 3, H, W] in [0, 1], or [3, F, 3, H, W] for videos."""
    shape = (3, height, width) if medium == "image" else (frames, 3, height, width)
    return drawn(shape)[:3]


def prompts_about(metadata: Mapping[str, str]) -> list[Prompt]:
    """Return typical prompts, each with a copy of the metadata."""
    return [Prompt(text, dict(metadata)) for text in TEXTS]

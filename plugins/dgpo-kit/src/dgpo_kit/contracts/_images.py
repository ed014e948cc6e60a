"""Media that need no data set: what rewards and detectors are tried on besides their own examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_kit.contracts._assertions import normal

__all__ = ["SIDE", "SIZES", "drawn", "media_of_size", "prompts_about"]

SIDE = 64
SIZES = ((1, 1), (1, 9), (9, 1), (17, 40), (96, 64))
"""(height, width) in pixels: single pixels, lines, odd numbers, lying and upright."""
TEXTS = ("a photo of a red circle", "a photo of two blue squares", "a dog left of a bench", "a green traffic light")


def drawn(shape: tuple[int, ...]) -> Tensor:
    """Noise, black, white and a bright half on a dark one, [4, *shape], float32 in [0, 1] with both ends."""
    noise = (0.5 + 0.25 * normal(*shape, seed=7)).clamp(0, 1)
    halves = torch.full(shape, 0.1)
    halves[..., shape[-1] // 2 :] = 0.9
    return torch.stack([noise, torch.zeros(shape), torch.ones(shape), halves])


def media_of_size(medium: str, height: int, width: int, frames: int = 2) -> Tensor:
    """Noise, black and white, [3, 3, H, W] or [3, F, 3, H, W]."""
    shape = (3, height, width) if medium == "image" else (frames, 3, height, width)
    return drawn(shape)[:3]


def prompts_about(metadata: Mapping[str, str]) -> list[Prompt]:
    """Prompts as a person might write them."""
    return [Prompt(text, dict(metadata)) for text in TEXTS]

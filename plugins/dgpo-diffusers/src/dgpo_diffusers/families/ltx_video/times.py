"""Times and positions of LTX-Video 0.9.5 and later."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_positions", "linear_quadratic"]

THRESHOLD = 0.025
"""Noise that the first half of the steps removes."""


def linear_quadratic(steps: int) -> tuple[float, ...]:
    """Return `steps` times that descend from 1: the first half linearly to 1 - 0.025, the others quadratically towards
    0. Source: `linear_quadratic_schedule` of diffusers' LTXConditionPipeline."""
    if steps < 2:
        return (1.0,)
    linear = steps // 2
    quadratic = steps - linear
    slope = THRESHOLD / linear
    # 1 - sigma of the last part: a parabola through (linear, THRESHOLD) with this slope there, and (steps, 1).
    bend = (1 - THRESHOLD - slope * quadratic) / quadratic**2
    removed = [slope * i for i in range(linear)]
    removed += [THRESHOLD + slope * i + bend * i**2 for i in range(quadratic)]
    return tuple(1 - share for share in removed)


def causal_positions(shape: tuple[int, ...], fps: float, frames: int, side: int, device: torch.device) -> Tensor:
    """Return the positions [1, 3, f h w] of latents of this shape [f, h, w], float32: seconds, and pixels from the top
    and from the left.

    frames, side: number of frames and of pixels in a latent. The first latent frame holds one frame; each of the others
    has the time of the first frame that it holds.
    """
    f, h, w = (torch.arange(count, dtype=torch.float32, device=device) for count in shape)
    seconds = (frames * f + 1 - frames).clamp(min=0) / fps
    return torch.stack(torch.meshgrid(seconds, side * h, side * w, indexing="ij")).flatten(1)[None]

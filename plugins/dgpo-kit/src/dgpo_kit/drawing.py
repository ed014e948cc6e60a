"""Sample from a backbone without the engine, for comparison with other implementations, and randomize its weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.flow.velocity import guided_velocity

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.types import Prompt

__all__ = ["draw", "randomize"]


@torch.no_grad()
def draw(backbone: Backbone, prompts: Sequence[Prompt], noise: Tensor, sigmas: Tensor, guidance: float = 1.0) -> Tensor:
    """Sample latents x0 [B, ...] with Euler steps, in float32.

    prompts: B prompts with sizes; noise: standard normal, float32 [B, *backbone.latent_shape(height, width)]; sigmas:
    the S + 1 sigmas of S steps, descending to 0, such as `schedules.sigmas(S, backbone.schedule(height, width, S))`;
    guidance: the guidance scale.
    """
    with backbone.encoding():
        conditioning = backbone.encode(prompts)
        unconditional = backbone.unconditional(prompts) if guidance != 1 else None
    sigmas = sigmas.to(noise)
    x = noise * backbone.start(float(sigmas[0]))
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * guided_velocity(backbone, x, sigma, conditioning, unconditional, guidance)
    return x


@torch.no_grad()
def randomize(backbone: Backbone) -> None:
    """Set the trained weights to nonzero values, always the same, because a new adapter has no effect."""
    for i, parameter in enumerate(backbone.trainable().values()):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))

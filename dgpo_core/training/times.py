"""The times of a pass over the groups of an iteration, and their weights, from the timestep policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.errors import PluginError

if TYPE_CHECKING:
    from dgpo_core.contracts import TimestepContext, TimestepPolicy
    from dgpo_core.draws import Draws

__all__ = ["draw_times"]


def draw_times(
    policy: TimestepPolicy, count: int, context: TimestepContext, draws: Draws
) -> tuple[Tensor, Tensor | None]:
    """Draw times, float64 [count], and return them with their weights, float64 [count], or None.

    Raises PluginError for weights that violate the contract, up to their mean, which one draw does not show.
    """
    sigmas = policy.draw(count, context, draws)
    weights: object = policy.weights(sigmas, context)
    if weights is None:
        return sigmas, None
    kind, where = type(policy), f"`weights` of {count} times must return"
    name = f"timesteps: {kind.__module__}:{kind.__qualname__}: {where}"
    if not isinstance(weights, Tensor) or weights.shape != sigmas.shape or weights.requires_grad:
        raise PluginError(f"{name} None or a tensor [{count}] without gradient, got {weights!r}")
    if weights.dtype != torch.float64 or weights.device.type != "cpu":
        raise PluginError(f"{name} float64 on the CPU, got {weights.dtype} on {weights.device}")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise PluginError(f"{name} finite numbers that are not negative, got {weights.tolist()}")
    return sigmas, weights

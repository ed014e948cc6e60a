"""Weights of the loss at each time, with mean 1 under the density of the times."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from dgpo_core.contracts import TimestepContext, TimestepPolicy
from dgpo_core.errors import UserError

__all__ = ["POINTS", "WeightedTimes", "midpoints", "step_noise", "with_mean_one"]

POINTS = 2**16
"""Number of quantiles of a continuous density whose mean stands for the density's: off by less than 1e-4, the most for
weights that jump."""


def midpoints() -> Tensor:
    """Return the middles of equal parts of [0, 1], float64: the midpoint rule's nodes."""
    return (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS


def with_mean_one(weight: Callable[[Tensor], Tensor], sigmas: Tensor, typical: Tensor) -> Tensor:
    """Return weight(sigmas) over its mean at `typical`, times of equal probability. All float64."""
    return weight(sigmas) / weight(typical).mean()


def step_noise(sigmas: Tensor, steps: Tensor) -> Tensor:
    """Return sqrt(sigma_k / (1 - sigma_k) (sigma_k - sigma_(k+1))) for the step k that contains each sigma.

    Up to the noise level a, this is the standard deviation of Flow-GRPO's random step (arXiv 2505.05470), by which
    TempFlow-GRPO weights the loss of that step (arXiv 2508.04324). The first step has the next sigma in the
    denominator, as Flow-GRPO has at sigma = 1. steps: float64 [steps + 1], descending.
    """
    start, end = steps[:-1], steps[1:]
    clean = 1 - torch.cat([end[:1], start[1:]])
    noise = (start / clean * (start - end)).sqrt()
    step = (start >= sigmas[:, None]).sum(1) - 1
    return noise[step.clamp(min=0)]


class WeightedTimes(TimestepPolicy):
    """Base of the policies with the options `weights` and `weights_power`; without options, no weights."""

    @abstractmethod
    def typical(self, context: TimestepContext) -> Tensor:
        """Return times of equal probability: the mean of a function of them is that under the density of `draw`."""

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError if the weights of all times are 0."""
        weight = self._weight(context)
        if weight is not None and not float(weight(self.typical(context)).mean()) > 0:
            raise UserError(
                f"timesteps.options.weights: {self.options.weights} is 0 at all times in [t_min, t_max] = "
                f"[{context.t_min:.4f}, {context.t_max:.4f}]; lower timesteps.t_min, or use other weights"
            )

    def weights(self, sigmas: Tensor, context: TimestepContext) -> Tensor | None:
        """Return float64 [T] on the CPU, or None without weights."""
        weight = self._weight(context)
        return None if weight is None else with_mean_one(weight, sigmas, self.typical(context))

    def _weight(self, context: TimestepContext) -> Callable[[Tensor], Tensor] | None:
        """Return the weight of times [T], up to a factor."""
        kind = "none" if self.options is None else self.options.weights
        if kind == "none":
            return None
        steps = context.sigmas if context.all_sigmas is None else context.all_sigmas
        weight: Callable[[Tensor], Tensor] = {
            "sigma": lambda sigmas: sigmas,
            "one-minus-sigma": lambda sigmas: 1 - sigmas,
            "step-noise": lambda sigmas: step_noise(sigmas, steps),
        }[kind]
        return lambda sigmas: weight(sigmas).pow(self.options.weights_power)

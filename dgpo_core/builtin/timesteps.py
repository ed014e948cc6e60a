"""Timestep policies: the sigmas in [t_min, t_max] at which the loss is evaluated."""

from __future__ import annotations

import math

from torch import Tensor

from dgpo_core.builtin.time_weights import WeightedTimes, midpoints
from dgpo_core.contracts import TimestepContext
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError

__all__ = ["SamplerSteps", "StratifiedTimesteps", "UniformTimesteps"]


class UniformTimesteps(WeightedTimes):
    """Independent times, uniform in [t_min, t_max], unsorted."""

    def typical(self, context: TimestepContext) -> Tensor:
        """Return quantiles of the density."""
        return context.t_min + (context.t_max - context.t_min) * midpoints()

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw float64 [count] on the CPU."""
        return context.t_min + (context.t_max - context.t_min) * draws.uniform(count)


class StratifiedTimesteps(WeightedTimes):
    """One time in each of `count` strata of [t_min, t_max] of equal probability, in random order.

    Each time alone has the density sigma^power, normalized: for power 0 the distribution of `uniform`, and an estimate
    of the same loss whose variance between times of different strata is gone (stratified sampling). A density in place
    of a weight: times drawn in proportion to w(sigma) give the expected gradient of uniform times whose losses, and KL
    terms, are multiplied by w(sigma) / mean w, while S_g of each time stays as it is. Source of weights that grow with
    sigma: TempFlow-GRPO (arXiv 2508.04324).
    """

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw float64 [count] on the CPU."""
        return self._quantiles((draws.at("order").permutation(count) + draws.uniform(count)) / count, context)

    def typical(self, context: TimestepContext) -> Tensor:
        """Return quantiles of the density."""
        return self._quantiles(midpoints(), context)

    def _quantiles(self, within: Tensor, context: TimestepContext) -> Tensor:
        """Return the times below which the shares `within` of the density lie."""
        order = self.options.power + 1
        low, high = context.t_min**order, context.t_max**order
        times: Tensor = (low + within * (high - low)).pow(1 / order)
        return times.clamp(context.t_min, context.t_max)


class SamplerSteps(WeightedTimes):
    """Times of the rollout sampler in [t_min, t_max], drawn without replacement: the authors' discrete rule.

    Includes both ends, but not 0, where the velocity is never evaluated. The times depend on the sampler, the steps and
    the shift: DPM-Solver++ with 10 steps and shift 3 visits 0.6663, just below shift(0.4) = 0.6667.
    """

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError if fewer than `count` times lie in the range, listing those that do and remedies."""
        available = self.typical(context)
        if len(available) >= count:
            super().check(context, count)
            return
        below_t_max = _steps_between(context.sigmas, 0.0, context.t_max)
        found = ", ".join(f"{sigma:.4f}" for sigma in available.tolist()) or "none"
        cures = [f"lower timesteps.count to {len(available)}"] if len(available) else []
        if len(below_t_max) >= count:
            # Round down, so that the printed number includes the step.
            t_min = math.floor(float(below_t_max[count - 1]) * 1e4) / 1e4
            cures.append(f"lower timesteps.t_min to {t_min:.4f}")
        else:
            cures.append(
                f"raise rollout.steps or timesteps.t_max (even with t_min 0 there are only {len(below_t_max)} times)"
            )
        raise UserError(
            f"timesteps.count: {count} times cannot be drawn without replacement: only {len(available)} of the "
            f"sampler's {len(context.sigmas) - 1} lie in [t_min, t_max] = [{context.t_min:.4f}, {context.t_max:.4f}] "
            f"({found}). Either {' or '.join(cures)}; the policy `uniform` has no such limit."
        )

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw float64 [count] on the CPU, distinct, in random order. Raises UserError as `check` does."""
        self.check(context, count)
        available = self.typical(context)
        return available[draws.permutation(len(available))[:count]]

    def typical(self, context: TimestepContext) -> Tensor:
        """Return the times of the sampler in [t_min, t_max], descending: each is drawn equally often."""
        return _steps_between(context.sigmas, context.t_min, context.t_max)


def _steps_between(sigmas: Tensor, t_min: float, t_max: float) -> Tensor:
    """Return the positive sigmas in [t_min, t_max], descending."""
    return sigmas[(sigmas >= t_min) & (sigmas <= t_max) & (sigmas > 0)]

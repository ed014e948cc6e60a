"""t_min on a schedule over training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from dgpo_adaptive_tmin.bounds import MovingBounds
from dgpo_core.contracts import TimestepContext
from dgpo_core.errors import UserError
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["ScheduledTmin"]


class ScheduledTmin(MovingBounds):
    """t_min(p) = start + f(p) * (end - start), and t_max likewise, with p the progress of the schedule in [0, 1].

    f(p) = p (linear) or (1 - cos(pi * p)) / 2 (cosine); p = min(1, iteration / (until * iterations)), with iteration
    counted from 0. By default t_min decreases, so that composition, which is determined at high noise, is learned
    before detail. Both bounds are clamped to [timesteps.t_min, timesteps.t_max]. The policy has no state.
    """

    movers = "start, end, t_max_start and t_max_end"

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """Return (t_min, t_max) of this iteration."""
        return self._clamped(*self._scheduled(context.iteration, context), context)

    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """Yield the bounds of every iteration; a narrow range can contain more sampler steps than a wide one."""
        for iteration in range(context.iterations):
            yield self.bounds(replace(context, iteration=iteration))

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError like every policy, and if t_min reaches t_max in an iteration."""
        for iteration in range(context.iterations):
            low, high = self._scheduled(iteration, context)
            if low >= high:
                raise UserError(
                    f"timesteps.options: t_min must stay below t_max, but in iteration {iteration + 1} they are "
                    f"{low:.4f} and {high:.4f}"
                )
        super().check(context, count)

    def _scheduled(self, iteration: int, context: TimestepContext) -> tuple[float, float]:
        """Return the bounds before they are clamped."""
        o = self.options
        progress = min(1.0, iteration / (o.until * context.iterations))
        fraction = (1 - math.cos(math.pi * progress)) / 2 if o.shape == "cosine" else progress

        def between(start: float | str, end: float | str) -> float:
            a, b = (resolve_sigma(sigma, context.shift) for sigma in (start, end))
            return a + fraction * (b - a)

        return between(o.start, o.end), between(o.t_max_start, o.t_max_end)

    def _clamped(self, low: float, high: float, context: TimestepContext) -> tuple[float, float]:
        low, high = (max(context.t_min, min(sigma, context.t_max)) for sigma in (low, high))
        return low, high

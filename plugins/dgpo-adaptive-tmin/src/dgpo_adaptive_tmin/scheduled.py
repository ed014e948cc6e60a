"""t_min by training progress."""

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
    """t_min(p) = start + f(p) * (end - start), and t_max likewise, p the share of the schedule that is done.

    f(p) = p (linear) or (1 - cos(pi * p)) / 2 (cosine); p = min(1, iteration / (until * iterations)), iteration counted
    from 0. By default t_min falls: composition, which high noise decides, is learned first, and detail only when
    samples have become better. Both ends are clamped to [timesteps.t_min, timesteps.t_max]. There is no state: the
    iteration says it all."""

    movers = "start, end, t_max_start and t_max_end"

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """(t_min, t_max) of this iteration."""
        return self._clamped(*self._asked(context.iteration, context), context)

    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """Those of every iteration: a narrow range may hold more of a sampler's steps than a wide one elsewhere."""
        for iteration in range(context.iterations):
            yield self.bounds(replace(context, iteration=iteration))

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError as every policy does, and where t_min would overtake t_max."""
        for iteration in range(context.iterations):
            low, high = self._asked(iteration, context)
            if low >= high:
                raise UserError(
                    f"timesteps.options: t_min must stay below t_max, but in iteration {iteration + 1} they are "
                    f"{low:.4f} and {high:.4f}"
                )
        super().check(context, count)

    def _asked(self, iteration: int, context: TimestepContext) -> tuple[float, float]:
        """What the options say, whatever the run's range is."""
        o = self.options
        progress = min(1.0, iteration / (o.until * context.iterations))
        part = (1 - math.cos(math.pi * progress)) / 2 if o.shape == "cosine" else progress

        def between(start: float | str, end: float | str) -> float:
            a, b = (resolve_sigma(one, context.shift) for one in (start, end))
            return a + part * (b - a)

        return between(o.start, o.end), between(o.t_max_start, o.t_max_end)

    def _clamped(self, low: float, high: float, context: TimestepContext) -> tuple[float, float]:
        low, high = (max(context.t_min, min(one, context.t_max)) for one in (low, high))
        return low, high

"""What the policies share: times drawn within bounds that move."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from dgpo_core.builtin.timesteps import SamplerSteps, UniformTimesteps
from dgpo_core.contracts import Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["MeasuringPolicy", "MovingBounds"]


class MovingBounds(TimestepPolicy):
    """Draws as `uniform` or `sampler-steps` do, within `bounds`."""

    movers: ClassVar[str]
    """The options that say how far the bounds move, for messages."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._within: TimestepPolicy = {"uniform": UniformTimesteps, "sampler-steps": SamplerSteps}[options.within](
            None
        )

    @abstractmethod
    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """Bounds that there may ever be: if `count` times can be drawn within these, they always can."""

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError if `count` times cannot always be drawn, or if the bounds ever leave only one time."""
        for low, high in dict.fromkeys(self.ranges(context)):
            moved = f"the bounds, which timesteps.options.{self.movers} move, come to [{low:.4f}, {high:.4f}]"
            if low == high and context.t_min < context.t_max:
                raise UserError(
                    f"timesteps.use: {moved}, a single time; keep them apart (within [timesteps.t_min, timesteps.t_max]"
                    f" = [{context.t_min:.4f}, {context.t_max:.4f}])"
                )
            try:
                self._within.check(replace(context, t_min=low, t_max=high), count)
            except UserError as error:
                inside = int(((context.sigmas >= low) & (context.sigmas <= high) & (context.sigmas > 0)).sum())
                fewer = f"lower timesteps.count to {inside}, " if inside else ""
                raise UserError(
                    f"timesteps.count: {count} times cannot be drawn without replacement: {moved}, where only {inside} "
                    f"of the sampler's {len(context.sigmas) - 1} lie; {fewer}move them less, or leave out `within: "
                    f"{self.options.within}`"
                ) from error

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """float64 [count] on the CPU, within `bounds`."""
        low, high = self.bounds(context)
        return self._within.draw(count, replace(context, t_min=low, t_max=high), draws)


class MeasuringPolicy(MovingBounds):
    """Measures every so often and moves t_min towards what it found: t <- s * t + (1 - s) * found.

    t_max is that of the run: nothing that few steps do to samples shows at high noise. A measurement that is not finite
    (a model that has just diverged) changes nothing and is made again in the next iteration.
    """

    measures: ClassVar[bool] = True
    movers = "highest"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._t_min: float | None = None
        self._due = True
        self._found: dict[str, float] = {}

    @abstractmethod
    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        """The t_min that the model asks for now, in [0, 1] (None: it asks for nothing), and the values to log."""

    def start(self, context: TimestepContext) -> float:
        """t_min until the model has asked for one: the largest, which is safe."""
        return 1.0

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        """Measure, if it is time."""
        if not self._due and context.iteration % self.options.every:
            return
        found, values = self.estimate(probe, context)
        self._due = not all(map(math.isfinite, (found or 0.0, *values.values())))
        if self._due:
            return
        self._found = values
        if found is None:
            return
        found = self._clamp(found, context)
        old = found if self._t_min is None else self._t_min
        self._t_min = self.options.smoothing * old + (1 - self.options.smoothing) * found

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """From the chosen t_min to t_max."""
        return self._clamp(self.start(context) if self._t_min is None else self._t_min, context), context.t_max

    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """The one of the largest t_min, which lies within all others."""
        return [(self._clamp(1.0, context), context.t_max)]

    def metrics(self) -> Mapping[str, float]:
        """What the last measurement found."""
        return self._found

    def state_dict(self) -> dict[str, Any]:
        """The chosen t_min, whether a measurement is overdue, and what the last one found."""
        return {"t_min": self._t_min, "due": self._due, "found": dict(self._found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._t_min, self._due, self._found = state["t_min"], state["due"], dict(state["found"])

    def _highest(self, context: TimestepContext) -> float:
        return resolve_sigma(self.options.highest, context.shift)

    def _clamp(self, sigma: float, context: TimestepContext) -> float:
        return max(context.t_min, min(sigma, self._highest(context), context.t_max))

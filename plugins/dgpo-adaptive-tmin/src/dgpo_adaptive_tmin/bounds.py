"""Base classes of the policies: times are drawn within bounds that change during training."""

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
    """Draws times like `uniform` or `sampler-steps`, within `bounds`."""

    movers: ClassVar[str]
    """Options that set the bounds, for messages."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._within: TimestepPolicy = {"uniform": UniformTimesteps, "sampler-steps": SamplerSteps}[options.within](
            None
        )

    @abstractmethod
    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """Yield the bounds to check: if `count` times can be drawn within each of them, they can in every iteration."""

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError if `count` times cannot be drawn in every iteration, or if the bounds can be equal."""
        for low, high in dict.fromkeys(self.ranges(context)):
            reached = f"the bounds reach [{low:.4f}, {high:.4f}] (set by timesteps.options.{self.movers})"
            if low == high and context.t_min < context.t_max:
                raise UserError(
                    f"timesteps.use: {reached}, a single time; separate them (within [timesteps.t_min, timesteps.t_max]"
                    f" = [{context.t_min:.4f}, {context.t_max:.4f}])"
                )
            try:
                self._within.check(replace(context, t_min=low, t_max=high), count)
            except UserError as error:
                inside = int(((context.sigmas >= low) & (context.sigmas <= high) & (context.sigmas > 0)).sum())
                fewer = f"lower timesteps.count to {inside}, " if inside else ""
                raise UserError(
                    f"timesteps.count: {count} times cannot be drawn without replacement: {reached}, where only "
                    f"{inside} of the sampler's {len(context.sigmas) - 1} lie; {fewer}move them less, or remove "
                    f"`within: {self.options.within}`"
                ) from error

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw float64 [count] on the CPU, within `bounds`."""
        low, high = self.bounds(context)
        return self._within.draw(count, replace(context, t_min=low, t_max=high), draws)


class MeasuringPolicy(MovingBounds):
    """Measures t_min every `every` iterations and smooths it: t_min <- s * t_min + (1 - s) * measured.

    t_max is that of the run, because artifacts of few-step sampling are not visible at high noise. A measurement that
    is not finite (a model that has diverged) is discarded and repeated in the next iteration.
    """

    measures: ClassVar[bool] = True
    movers = "highest"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._t_min: float | None = None
        self._due = True
        self._values: dict[str, float] = {}

    @abstractmethod
    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        """Return the measured t_min in [0, 1], or None to keep the current one, and the values to log."""

    def start(self, context: TimestepContext) -> float:
        """Return t_min before the first estimate: the largest, which is safe."""
        return 1.0

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        """Update t_min if a measurement is due."""
        if not self._due and context.iteration % self.options.every:
            return
        measured, values = self.estimate(probe, context)
        self._due = not all(map(math.isfinite, (measured or 0.0, *values.values())))
        if self._due:
            return
        self._values = values
        if measured is None:
            return
        measured = self._clamp(measured, context)
        old = measured if self._t_min is None else self._t_min
        self._t_min = self.options.smoothing * old + (1 - self.options.smoothing) * measured

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """Return (current t_min, t_max)."""
        return self._clamp(self.start(context) if self._t_min is None else self._t_min, context), context.t_max

    def ranges(self, context: TimestepContext) -> Iterable[tuple[float, float]]:
        """Return the bounds with the largest t_min, which lie within all others."""
        return [(self._clamp(1.0, context), context.t_max)]

    def metrics(self) -> Mapping[str, float]:
        """Return the values of the last measurement."""
        return self._values

    def state_dict(self) -> dict[str, Any]:
        """Return t_min, whether a measurement is overdue, and the values of the last measurement."""
        return {"t_min": self._t_min, "due": self._due, "found": dict(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._t_min, self._due, self._values = state["t_min"], state["due"], dict(state["found"])

    def _highest(self, context: TimestepContext) -> float:
        return resolve_sigma(self.options.highest, context.shift)

    def _clamp(self, sigma: float, context: TimestepContext) -> float:
        return max(context.t_min, min(sigma, self._highest(context), context.t_max))

"""The times of a run: those that its samples visit and those that it trains at, where the run file leaves them to the
model, and whether the model knows them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import of_model, only_one
from dgpo_core.flow.sizes import Size
from dgpo_core.plugins import contract_checks
from dgpo_core.types import Schedule

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, Objective, Sampler
    from dgpo_schemas.run import RunConfig

__all__ = ["Times"]

ROUNDING = 1e-9
"""By which a sampler's time may miss the end of a model's range: coefficients are float64."""


class Times:
    """Of a run file and its model."""

    def __init__(self, config: RunConfig, backbone: Backbone) -> None:
        self.config = config
        self.backbone = backbone

    @cached_property
    def schedule(self) -> Schedule:
        """That of rollouts of the configured resolution."""
        return self._schedule(self.config.rollout.height_width, self.config.rollout.steps)

    def _schedule(self, size: Size, steps: int) -> Schedule:
        return of_model(self.backbone, size, steps, self.config.rollout.shift)

    @property
    def shown(self) -> str:
        """The shift, and whose it is, for people."""
        return f"{self.schedule.shift:.4g}" + (" (the model's own)" if self.config.rollout.shift == "auto" else "")

    @property
    def training_range(self) -> tuple[float, float]:
        """(t_min, t_max) of the run file as sigmas, with the rollouts' shift and the model's own highest time."""
        return self.config.training_range(self.schedule.shift, self.backbone.sigma_range[1])

    def record(self, sampler: Sampler) -> dict[str, Any]:
        """What run.json says of the times of rollouts and of training."""
        low, high = self.training_range
        return {
            "shift": self.schedule.shift,
            "t_min": low,
            "t_max": high,
            "sigmas": sampler.sigmas(self.config.rollout.steps, self.schedule).tolist(),
        }

    @property
    def _known(self) -> str:
        lowest, highest = self.backbone.sigma_range
        return f"backbone: {self.config.backbone.use} knows only times from {lowest:.4g} to {highest:.4g}"

    def check_range(self) -> None:
        """Raise UserError for training times that are none, or that the model does not know."""
        section, (low, high) = self.config.timesteps, self.training_range
        lowest, highest = self.backbone.sigma_range
        if low < lowest:
            raise UserError(
                f"timesteps.t_min: {section.t_min} (sigma {low:.4g}) is too low: {self._known}; the nearest is "
                f"{math.ceil(lowest * 1e4) / 1e4:g}"
            )
        if high > highest:
            raise UserError(
                f"timesteps.t_max: {section.t_max} (sigma {high:.4g}) is too high: {self._known}; the nearest is "
                f"{math.floor(highest * 1e4) / 1e4:g}, and left out it is the model's own"
            )
        if not low < high:
            shown = f"{high:.4g}, the model's own" if section.t_max is None else f"{section.t_max} (sigma {high:.4g})"
            raise UserError(
                f"timesteps.t_min: {section.t_min} (sigma {low:.4g}) must be below t_max = {shown}; 1 is noise and 0 "
                "is data"
            )
        contract_checks.weights_of_errors(self.backbone, low, high)

    def check_sizes(self, sizes: Iterable[Size], sampler: Sampler, objective: Objective) -> None:
        """Raise UserError where samples of these sizes cannot all be drawn at times that the model knows, and where an
        objective learns from paths whose times would differ."""
        steps = self.config.rollout.steps
        found = {size: self._schedule(size, steps) for size in sorted(sizes)}
        for size, schedule in found.items():
            self.check_sampler("rollout.steps", sampler, steps, size)
            contract_checks.start(self.backbone, float(sampler.sigmas(steps, schedule)[0]))
        if objective.needs_path:  # training times are drawn for the run's own size, which no prompt need have
            only_one({self.config.rollout.height_width: self.schedule} | found, self.config.objective.use)

    def check_sampler(self, key: str, sampler: Sampler, steps: int, size: Size) -> None:
        """Raise UserError, about a setting `key`, if samples in so many steps visit times that the model does not
        know."""
        found = self._strangers(sampler, steps, size)
        if not found:
            return
        shift = self.config.rollout.shift
        if shift != "auto" and found[0] > self.backbone.sigma_range[1]:
            raise UserError(
                f"rollout.shift: {shift:g} takes samples in {steps} steps to sigma {found[0]:.4g}, and {self._known}; "
                f"a lower number, or auto, which is {self.backbone.schedule(*size, steps).shift:.4g} here, does not"
            )
        fewer = next((count for count in range(steps - 1, 0, -1) if not self._strangers(sampler, count, size)), None)
        cure = "flow-euler takes the model's own times" if fewer is None else f"at most {fewer} stay among them"
        raise UserError(f"{key}: {steps} steps of this sampler visit sigma {found[-1]:.4g}, and {self._known}; {cure}")

    def _strangers(self, sampler: Sampler, steps: int, size: Size) -> list[float]:
        """Times of samples that the model does not know."""
        lowest, highest = self.backbone.sigma_range
        times = sampler.sigmas(steps, self._schedule(size, steps))[:-1].tolist()
        return [time for time in times if not lowest - ROUNDING <= time <= highest + ROUNDING]

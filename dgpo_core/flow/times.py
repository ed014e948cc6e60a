"""The sampling and training times of a run: defaults from the model, and checks against the model's range."""

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
"""Tolerance for sampler times at the ends of a model's range."""


class Times:
    """The times of a run, from its run file and its model."""

    def __init__(self, config: RunConfig, backbone: Backbone) -> None:
        self.config = config
        self.backbone = backbone

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of rollouts at the configured resolution."""
        return self._schedule(self.config.rollout.height_width, self.config.rollout.steps)

    def _schedule(self, size: Size, steps: int) -> Schedule:
        return of_model(self.backbone, size, steps, self.config.rollout.shift)

    @property
    def shown(self) -> str:
        """The shift for display, marked if it is the model's."""
        return f"{self.schedule.shift:.4g}" + (" (the model's own)" if self.config.rollout.shift == "auto" else "")

    @property
    def training_range(self) -> tuple[float, float]:
        """(t_min, t_max) of the run file as sigmas, resolved with the rollouts' shift and the model's highest time."""
        return self.config.training_range(self.schedule.shift, self.backbone.sigma_range[1])

    def record(self, sampler: Sampler) -> dict[str, Any]:
        """Return the sampling and training times for run.json."""
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
        return f"the backbone {self.config.backbone.use} supports only times from {lowest:.4g} to {highest:.4g}"

    def check_range(self) -> None:
        """Raise UserError if the range of training times is empty or exceeds the model's range."""
        section, (low, high) = self.config.timesteps, self.training_range
        lowest, highest = self.backbone.sigma_range
        if low < lowest:
            raise UserError(
                f"timesteps.t_min: {section.t_min} (sigma {low:.4g}) is too low: {self._known}; the nearest value is "
                f"{math.ceil(lowest * 1e4) / 1e4:g}"
            )
        if high > highest:
            raise UserError(
                f"timesteps.t_max: {section.t_max} (sigma {high:.4g}) is too high: {self._known}; the nearest value is "
                f"{math.floor(highest * 1e4) / 1e4:g}, the default is the model's maximum"
            )
        if not low < high:
            shown = f"{high:.4g}, the model's" if section.t_max is None else f"{section.t_max} (sigma {high:.4g})"
            raise UserError(
                f"timesteps.t_min: {section.t_min} (sigma {low:.4g}) must be below t_max = {shown}; 1 is noise and 0 "
                "is data"
            )
        contract_checks.weights_of_errors(self.backbone, low, high)

    def check_sizes(self, sizes: Iterable[Size], sampler: Sampler, objective: Objective) -> None:
        """Raise UserError if sampling at one of these sizes leaves the model's range of times, or if the objective
        needs paths and their times differ between sizes."""
        steps = self.config.rollout.steps
        schedules = {size: self._schedule(size, steps) for size in sorted(sizes)}
        for size, schedule in schedules.items():
            self.check_sampler("rollout.steps", sampler, steps, size)
            contract_checks.start(self.backbone, float(sampler.sigmas(steps, schedule)[0]))
        if objective.needs_path:  # training times are drawn for the run's size, even if no prompt has it
            only_one({self.config.rollout.height_width: self.schedule} | schedules, self.config.objective.use)

    def check_sampler(self, key: str, sampler: Sampler, steps: int, size: Size) -> None:
        """Raise UserError, naming the setting `key`, if sampling in `steps` steps leaves the model's range of times."""
        outside = self._outside(sampler, steps, size)
        if not outside:
            return
        shift = self.config.rollout.shift
        if shift != "auto" and outside[0] > self.backbone.sigma_range[1]:
            raise UserError(
                f"rollout.shift: with {shift:g}, samples in {steps} steps visit sigma {outside[0]:.4g}, but "
                f"{self._known}; use a lower shift, or auto (here {self.backbone.schedule(*size, steps).shift:.4g})"
            )
        fewer = next((count for count in range(steps - 1, 0, -1) if not self._outside(sampler, count, size)), None)
        cure = "flow-euler, which follows the model's grid" if fewer is None else f"at most {fewer} steps"
        raise UserError(
            f"{key}: {steps} steps of this sampler visit sigma {outside[-1]:.4g}, but {self._known}; use {cure}"
        )

    def _outside(self, sampler: Sampler, steps: int, size: Size) -> list[float]:
        """Return the sampling times outside the model's range."""
        lowest, highest = self.backbone.sigma_range
        times = sampler.sigmas(steps, self._schedule(size, steps))[:-1].tolist()
        return [time for time in times if not lowest - ROUNDING <= time <= highest + ROUNDING]

"""A timestep policy that weights each time by the inverse of the model's denoising error there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo_core.builtin.options import StratifiedOptions
from dgpo_core.builtin.time_weights import WeightedTimes, with_mean_one
from dgpo_core.builtin.timesteps import SamplerSteps, StratifiedTimesteps, UniformTimesteps
from dgpo_core.contracts import Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws

__all__ = ["InverseDsm"]


class InverseDsm(TimestepPolicy):
    """Times of another policy, weighted by 1 / E dsm(sigma), so that relative errors count alike at all times.

    E dsm(sigma) is the mean denoising error of the current model, measured every `every` iterations on its own samples
    at the middles of `points` equal parts of [t_min, t_max], interpolated between them and constant beyond. All
    measurements use the same prompts and noise, so their differences come from the model. One that is not finite and
    positive (a model that has diverged) is discarded and repeated in the next iteration; before the first there are no
    weights.

    Logged: `dsm_low` and `dsm_high`, the smallest and the largest mean error.
    """

    measures: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        kinds: Mapping[str, WeightedTimes] = {
            "uniform": UniformTimesteps(None),
            "stratified": StratifiedTimesteps(StratifiedOptions()),
            "sampler-steps": SamplerSteps(None),
        }
        self._within = kinds[options.within]
        self._sigmas: list[float] = []
        self._errors: list[float] = []
        self._due = True

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError as the policy that draws the times."""
        self._within.check(context, count)

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw float64 [count] on the CPU."""
        return self._within.draw(count, context, draws)

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        """Measure the mean errors if this is due."""
        if not self._due and context.iteration % self.options.every:
            return
        parts = (torch.arange(self.options.points, dtype=torch.float64) + 0.5) / self.options.points
        sigmas = context.t_min + (context.t_max - context.t_min) * parts
        errors = probe.errors(probe.samples(self.options.samples), sigmas)[0].mean(1)
        self._due = not bool((errors.isfinite() & (errors > 0)).all())
        if not self._due:
            self._sigmas, self._errors = sigmas.tolist(), errors.tolist()

    def weights(self, sigmas: Tensor, context: TimestepContext) -> Tensor | None:
        """Return float64 [T] on the CPU, or None before the first measurement."""
        return with_mean_one(self._weight, sigmas, self._within.typical(context)) if self._errors else None

    def _weight(self, sigmas: Tensor) -> Tensor:
        """Return 1 / E dsm to the power, with E dsm relative to its largest value, interpolated linearly."""
        at, errors = torch.tensor([self._sigmas, self._errors], dtype=torch.float64)
        errors = errors / errors.max()
        after = torch.searchsorted(at, sigmas).clamp(max=len(at) - 1)
        before = (after - 1).clamp(min=0)
        gap = at[after] - at[before]
        share = torch.where(gap > 0, (sigmas - at[before]) / gap.clamp(min=1e-300), 0.0).clamp(0, 1)
        return torch.lerp(errors[before], errors[after], share).pow(-self.options.power)

    def metrics(self) -> Mapping[str, float]:
        """Return the smallest and the largest mean error of the last measurement."""
        return {"dsm_low": min(self._errors), "dsm_high": max(self._errors)} if self._errors else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the last measurement, and whether one is overdue."""
        return {"sigmas": self._sigmas, "errors": self._errors, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._sigmas, self._errors, self._due = list(state["sigmas"]), list(state["errors"]), state["due"]

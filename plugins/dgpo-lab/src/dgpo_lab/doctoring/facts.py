"""The data that all examinations share, read once: the logs, how the run ended, and what its plugins declare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dgpo_core.storage.locking import in_use
from dgpo_core.storage.run_directory import read_outcome
from dgpo_core.types import Schedule
from dgpo_lab.doctoring.trends import MIN_ITERATIONS, Series
from dgpo_lab.reporting.data import Evaluation, RunData, Score, read_run, reward_range
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.rewards import RewardBlock

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.metrics import OutcomeRecord

__all__ = ["Components", "Facts", "State", "below", "read_facts"]

State = Literal["complete", "running", "interrupted", "failed", "paused", "killed"]
"""paused: the last process reached its iteration limit; killed: it ended without writing outcome.json."""


@dataclass(frozen=True, slots=True)
class Components:
    """What the run's plugins declare.

    times: the sigmas that the rollouts visit, descending, ending with 0; None if run.json does not record them and the
    sampler cannot compute them. random: whether the sampler is stochastic; needs_path: whether the objective trains on
    the sampling path; both None if the plugin is not installed. ranges: (minimum, maximum) of each reward that
    declares a range.
    """

    times: Sequence[float] | None
    random: bool | None
    needs_path: bool | None
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Times:
    """The shift of the rollouts' noise schedule, and the range of the training timesteps as sigmas."""

    shift: float
    t_min: float
    t_max: float


@dataclass(frozen=True)
class Facts:
    """The logs, the outcome and the declarations of one run."""

    data: RunData
    components: Components
    outcome: OutcomeRecord | None
    in_use: bool

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.data.config

    @property
    def iterations(self) -> int:
        """The number of iterations in metrics.jsonl."""
        return len(self.data.metrics)

    @cached_property
    def times(self) -> Times | None:
        """The recorded shift and training range; None if they are unknown.

        They come from run.json. Run directories of older versions do not record them; then they come from the
        configuration, unless `rollout.shift: auto` leaves the shift to the model, which is not loaded.
        """
        recorded = self.data.record.get("times")
        if isinstance(recorded, Mapping):
            shift, t_min, t_max = (_number(recorded.get(name)) for name in ("shift", "t_min", "t_max"))
            return Times(shift, t_min, t_max) if shift > 0 and 0 <= t_min < t_max <= 1 else None
        if self.config.rollout.shift == "auto":
            return None
        return Times(self.config.rollout.shift, *self.config.training_range(self.config.rollout.shift))

    def too_few(self, needed: int = MIN_ITERATIONS) -> str:
        """The reason why a subject cannot be judged yet."""
        return f"{self.iterations} {'iteration' if self.iterations == 1 else 'iterations'}, {needed} needed"

    @property
    def state(self) -> State:
        """Whether the run is in progress, or how its last process ended."""
        if self.in_use:
            return "running"
        if self.outcome is None:
            return "complete" if self.data.complete else "killed"
        if self.outcome.outcome == "finished":
            return "complete" if self.outcome.ended_by is not None else "paused"
        return self.outcome.outcome

    def series(self, key: str) -> Series:
        """Return a metric by its dotted key."""
        return Series(self.data.iterations, self.data.column(key))

    def reward(self, label: str, key: str) -> Series:
        """Return a metric of one reward. Labels may contain dots, so this is not a dotted key."""
        logged = [((record.get("rewards") or {}).get(label) or {}).get(key) for record in self.data.metrics]
        values = [math.nan if value is None else float(value) for value in logged]
        return Series(self.data.iterations, np.array(values, dtype=np.float64))

    def timing(self, phase: str | None = None) -> Series:
        """Return the seconds per iteration of a phase, or of the whole iteration."""
        values = []
        for iteration in self.data.iterations:
            record = self.data.timings.get(int(iteration), {})
            timed = record if phase is None else (record.get("phases") or {}).get(phase) or {}
            values.append(float(timed.get("seconds", math.nan)))
        return Series(self.data.iterations, np.array(values, dtype=np.float64), "timings.jsonl")

    @property
    def samples(self) -> int:
        """The number of samples per iteration."""
        return self.data.samples_per_iteration

    @property
    def weighted_rewards(self) -> Sequence[RewardBlock]:
        """The rewards with nonzero weight."""
        return [block for block in self.config.rewards if block.weight]

    @cached_property
    def reward_range(self) -> tuple[float, float] | None:
        """Minimum and maximum of the weighted sum of the rewards; None if one of them declares no bound."""
        low = high = 0.0
        for block in self.weighted_rewards:
            ends = self.components.ranges.get(block.label)
            if ends is None:
                return None
            low += min(block.weight * end for end in ends)
            high += max(block.weight * end for end in ends)
        return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None

    @cached_property
    def target(self) -> Sequence[Evaluation]:
        """Evaluations of the target, which is the first evaluated reward."""
        return next((found for found in self.data.evaluations.values() if found[0].role == "target"), ())

    @property
    def heldout_fell(self) -> bool:
        """Whether the target is below its best evaluation and the two intervals do not overlap."""
        return bool(self.target) and below(self.target[-1].score, self.best.score)

    @property
    def best(self) -> Evaluation:
        """The target's best evaluation. The target must have been evaluated."""
        return max(self.target, key=lambda found: found.score.value)


def below(one: Score, other: Score) -> bool:
    """Return whether the first interval lies entirely below the second; False if the log has no intervals."""
    return one.high is not None and other.low is not None and one.high < other.low


def read_facts(path: Path, registry: Registry, *, running: bool | None = None) -> Facts:
    """Read a run directory. Raises UserError if it is not a run directory, has no logs yet, or cannot be read.

    running: whether a process trains the run, if the caller knows it; else the run's lock is asked.
    """
    data = read_run(path, registry)
    return Facts(data, _components(data, registry), read_outcome(path), in_use(path) if running is None else running)


def _number(value: object) -> float:
    """Return the value as a float, or nan if it is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def _recorded(data: RunData) -> Sequence[float] | None:
    """Return the sigmas of the rollouts from run.json, or None if they are missing or not a descending schedule."""
    recorded = data.record.get("times")
    sigmas = recorded.get("sigmas") if isinstance(recorded, Mapping) else None
    if not isinstance(sigmas, list) or len(sigmas) < 2 or not all(isinstance(sigma, int | float) for sigma in sigmas):
        return None
    return tuple(map(float, sigmas)) if all(a > b for a, b in pairwise(sigmas)) and sigmas[-1] == 0 else None


def _components(data: RunData, registry: Registry) -> Components:
    config, times = data.config, _recorded(data)
    random = needs_path = None
    with suppress(Exception):  # plugins may be broken or not installed; a run must be readable without them
        needs_path = registry.implementation(registry.find("objective", config.objective.use)).needs_path
    with suppress(Exception):
        sampler: Any = registry.create("sampler", config.rollout.sampler)
        random = not sampler.deterministic
        if times is None and config.rollout.shift != "auto":  # a run directory of an older version
            times = tuple(sampler.sigmas(config.rollout.steps, Schedule(config.rollout.shift)).tolist())
    ranges = {block.label: reward_range(block.label, config.rewards, registry) for block in config.rewards}
    known = {label: limits for label, limits in ranges.items() if limits is not None}
    return Components(times, random, needs_path, known)

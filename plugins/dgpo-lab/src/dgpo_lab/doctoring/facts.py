"""Everything that the examinations look at, read once: the logs, how the run ended, and what its plugins declare."""

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
"""paused: its last process did as many iterations as it was asked for; killed: it ended without a word."""


@dataclass(frozen=True, slots=True)
class Components:
    """What the run's plugins declare.

    times: those the rollouts visit, descending, the last 0; None where run.json does not say them and they cannot be
    had from the sampler here. random: whether the sampler is; needs_path: whether the objective learns from its path;
    None where the plugin is not installed here. ranges: smallest and largest value of each reward that declares them.
    """

    times: Sequence[float] | None
    random: bool | None
    needs_path: bool | None
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Times:
    """Of the run as it was: the shift of its rollouts, and the range of its training times, as sigmas."""

    shift: float
    t_min: float
    t_max: float


@dataclass(frozen=True)
class Facts:
    """One run."""

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
        """Iterations in metrics.jsonl."""
        return len(self.data.metrics)

    @cached_property
    def times(self) -> Times | None:
        """As run.json has them; of an older version's as far as the configuration does not leave them to the model,
        which is not here to be asked. None: not known."""
        said = self.data.record.get("times")
        if isinstance(said, Mapping):
            shift, t_min, t_max = (_number(said.get(name)) for name in ("shift", "t_min", "t_max"))
            return Times(shift, t_min, t_max) if shift > 0 and 0 <= t_min < t_max <= 1 else None
        if self.config.rollout.shift == "auto":
            return None
        return Times(self.config.rollout.shift, *self.config.training_range(self.config.rollout.shift))

    def too_few(self, wanted: int = MIN_ITERATIONS) -> str:
        """Why nothing can be said yet."""
        return f"{self.iterations} {'iteration' if self.iterations == 1 else 'iterations'}, {wanted} wanted"

    @property
    def state(self) -> State:
        """Whether it goes on, or how its last process ended."""
        if self.in_use:
            return "running"
        if self.outcome is None:
            return "complete" if self.data.complete else "killed"
        if self.outcome.outcome == "finished":
            return "complete" if self.outcome.ended_by is not None else "paused"
        return self.outcome.outcome

    def series(self, key: str) -> Series:
        """A metric by its dotted key."""
        return Series(self.data.iterations, self.data.column(key))

    def reward(self, label: str, key: str) -> Series:
        """A number of one reward; its label may have dots, so it is no dotted key."""
        found = [((record.get("rewards") or {}).get(label) or {}).get(key) for record in self.data.metrics]
        values = [math.nan if value is None else float(value) for value in found]
        return Series(self.data.iterations, np.array(values, dtype=np.float64))

    def timing(self, phase: str | None = None) -> Series:
        """Seconds of a phase, or of whole iterations."""
        values = []
        for iteration in self.data.iterations:
            record = self.data.timings.get(int(iteration), {})
            found = record if phase is None else (record.get("phases") or {}).get(phase) or {}
            values.append(float(found.get("seconds", math.nan)))
        return Series(self.data.iterations, np.array(values, dtype=np.float64), "timings.jsonl")

    @property
    def samples(self) -> int:
        """Samples of an iteration."""
        return self.data.samples_per_iteration

    @property
    def weighed(self) -> Sequence[RewardBlock]:
        """The rewards that count."""
        return [block for block in self.config.rewards if block.weight]

    @cached_property
    def reward_range(self) -> tuple[float, float] | None:
        """Smallest and largest weighted sum of the rewards; None if one of them declares no bound."""
        low = high = 0.0
        for block in self.weighed:
            ends = self.components.ranges.get(block.label)
            if ends is None:
                return None
            low += min(block.weight * end for end in ends)
            high += max(block.weight * end for end in ends)
        return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None

    @cached_property
    def target(self) -> Sequence[Evaluation]:
        """Evaluations of the reward that decides, the first one evaluated."""
        return next((found for found in self.data.evaluations.values() if found[0].role == "target"), ())

    @property
    def heldout_fell(self) -> bool:
        """Whether the target lies below its best evaluation, beyond both intervals."""
        return bool(self.target) and below(self.target[-1].score, self.best.score)

    @property
    def best(self) -> Evaluation:
        """The target's best evaluation; there must be one."""
        return max(self.target, key=lambda found: found.score.value)


def below(one: Score, other: Score) -> bool:
    """Whether one's interval lies below the other's; not where the log has none."""
    return one.high is not None and other.low is not None and one.high < other.low


def read_facts(path: Path, registry: Registry) -> Facts:
    """Read a run directory. Raises UserError if it is none, has logged nothing yet, or cannot be read."""
    data = read_run(path, registry)
    return Facts(data, _components(data, registry), read_outcome(path), in_use(path))


def _number(value: object) -> float:
    """nan for what is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _recorded(data: RunData) -> Sequence[float] | None:
    """The times that run.json says the rollouts visit."""
    said = data.record.get("times")
    found = said.get("sigmas") if isinstance(said, Mapping) else None
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(one, int | float) for one in found):
        return None
    return tuple(map(float, found)) if all(a > b for a, b in pairwise(found)) and found[-1] == 0 else None


def _components(data: RunData, registry: Registry) -> Components:
    config, times = data.config, _recorded(data)
    random = needs_path = None
    with suppress(Exception):  # somebody else's code, or not installed here; a run must be readable without it
        needs_path = registry.implementation(registry.find("objective", config.objective.use)).needs_path
    with suppress(Exception):
        made: Any = registry.create("sampler", config.rollout.sampler)
        random = not made.deterministic
        if times is None and config.rollout.shift != "auto":  # a directory of an older version
            times = tuple(made.sigmas(config.rollout.steps, Schedule(config.rollout.shift)).tolist())
    ranges = {block.label: reward_range(block.label, config.rewards, registry) for block in config.rewards}
    known = {label: found for label, found in ranges.items() if found is not None}
    return Components(times, random, needs_path, known)

"""The contents of a run directory, read once into frozen records.

Unfinished runs and logs of older versions are read too: missing values are None (nan in columns), and invalid lines are
skipped and reported in `problems`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dgpo_core.config.migration.earlier import check_run
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.storage.checkpoint import whole_manifests
from dgpo_core.storage.description import changed_config
from dgpo_core.storage.logs import damages
from dgpo_core.storage.run_directory import RunDirectory, read_outcome
from dgpo_core.system.reading import read_file, read_json
from dgpo_lab.reporting.images import RunImages, read_images
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sealing import seal_of
from dgpo_schemas.sections.rewards import RewardBlock

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["Evaluation", "RunData", "Score", "read_run", "reward_range"]

T = TypeVar("T")

MOST = 10**9
"""Maximum iteration number; a log with a larger one is damaged."""
LARGEST = 1e100
"""Maximum magnitude of a logged number; larger ones cannot be computed with or drawn."""
METRICS = {"reward": 1, "rewards": 2, "extra": 1, "statistics": 1, "timesteps": 1, "sources": 2}
TIMINGS = {"phases": 2, "rewards": 1}
"""Sections of a log's records, and the number of nested name levels above their numbers."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over `n` prompts with its 95 % interval (None if the log has none)."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one reward or media statistic.

    Iteration 0 is the base model; `groups` are the scores by task; `role` is the role in the log's record.
    """

    iteration: int
    model: str
    reward: str
    role: str
    score: Score
    groups: Mapping[str, Score]
    missing: int
    sources: Mapping[str, Score] = field(default_factory=dict)
    """Scores by prompt source, if there are several sources."""


@dataclass(frozen=True)
class RunData:
    """A run directory.

    `metrics` and `timings` hold one nested record per iteration, in order; `evaluations` holds the evaluations of each
    reward by label, `statistics` those of each media statistic by name.
    """

    path: Path
    config: RunConfig
    config_text: str
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timings: Mapping[int, Mapping[str, Any]]
    evaluations: Mapping[str, Sequence[Evaluation]]
    statistics: Mapping[str, Sequence[Evaluation]]
    images: RunImages
    ranges: Mapping[str, tuple[float, float]]
    problems: Sequence[str]
    ended_by: str | None = None
    """The limit that ended the run, from outcome.json; None if the run has not ended or the file does not exist."""

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.run.name

    @property
    def done(self) -> int:
        """The number of finished iterations."""
        logged = [record["iteration"] for record in self.metrics]
        return max([*logged, *(e.iteration for found in self.evaluations.values() for e in found)], default=0)

    @property
    def complete(self) -> bool:
        """Whether the run has reached its last iteration or a limit in `stop`."""
        return self.ended_by is not None or self.done >= self.config.run.iterations

    @property
    def samples_per_iteration(self) -> int:
        """The number of rollout samples per iteration."""
        return self.config.rollout.groups * self.config.rollout.group_size

    def column(self, key: str) -> NDArray[np.float64]:
        """Return a metric by its dotted key: one value per iteration, nan where it is missing."""
        return self.values(*key.split("."))

    def values(self, *path: str) -> NDArray[np.float64]:
        """Return a metric by its path, for names of rewards and sources that contain dots."""
        return np.array([_number(_dig(record, path), math.nan) for record in self.metrics], dtype=np.float64)

    def names(self, *path: str) -> list[str]:
        """Return the names that are logged in a section in any iteration, in the order of the log."""
        sections = (_dig(record, path) for record in self.metrics)
        return list(dict.fromkeys(name for section in sections if isinstance(section, Mapping) for name in section))

    @cached_property
    def iterations(self) -> NDArray[np.float64]:
        """The iterations of `metrics`."""
        return self.column("iteration")

    @cached_property
    def _clock(self) -> tuple[list[int], list[float]]:
        """The iterations with timings, and the cumulative seconds at the end of each, starting with 0."""
        timed = sorted(self.timings)
        return timed, list(accumulate((_number(self.timings[i].get("seconds"), 0.0) for i in timed), initial=0.0))

    def seconds_at(self, iteration: float) -> float:
        """Return the training seconds until the end of an iteration, excluding evaluations and checkpoints.

        Iterations without timings count as 0 seconds.
        """
        timed, spent = self._clock
        return spent[bisect_right(timed, iteration)]

    @property
    def phases(self) -> Mapping[int, Mapping[str, Mapping[str, float]]]:
        """The logged timings of each phase, by iteration."""
        return {iteration: timing.get("phases", {}) for iteration, timing in self.timings.items()}

    def phase_seconds(self, iteration: int, phase: str) -> float:
        """Return the seconds of a phase in one iteration; 0 if it did not run."""
        return float(self.timings[iteration].get("phases", {}).get(phase, {}).get("seconds", 0.0))

    def samples_at(self, iteration: float) -> float:
        """Return the number of rollout samples until the end of an iteration."""
        return float(iteration * self.samples_per_iteration)


def read_run(path: Path, registry: Registry) -> RunData:
    """Read a run directory.

    Raises UserError if it is not a run directory, if nothing is logged yet, or if a file cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: not a run directory (it has no config.yaml)")
    check_run(path)
    config = load_run_config(path / "config.yaml")
    problems = _changed(path)
    metrics = _read_log(path, "metrics.jsonl", lambda line: _numbers(line, METRICS), problems)
    timings = _read_log(path, "timings.jsonl", lambda line: _numbers(line, TIMINGS), problems)
    found = _read_log(path, "evaluations.jsonl", _evaluation, problems)
    if not metrics and not found:
        raise UserError(f"{path}: nothing is logged yet: no iteration and no evaluation has finished")
    statistics = _by_label(e for e in found if e.role == "statistic")
    evaluations = _by_label(e for e in found if e.role != "statistic")
    blocks = [*(config.evaluation.rewards or ()), *config.rewards, *config.evaluation.monitors.rewards]
    ranges = {label: reward_range(label, blocks, registry) for label in evaluations}
    return RunData(
        path=path,
        config=config,
        config_text=read_file(path / "config.yaml").decode(),
        record=_read_record(path / "run.json", problems),
        metrics=[m for _, m in sorted({m["iteration"]: m for m in metrics}.items())],
        timings={t["iteration"]: t for t in timings},
        evaluations=evaluations,
        statistics=statistics,
        images=read_images(path / "images", problems),
        ranges={label: limits for label, limits in ranges.items() if limits is not None},
        problems=problems,
        ended_by=None if (outcome := read_outcome(path)) is None else outcome.ended_by,
    )


def _by_label(found: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group evaluations by label, each sorted by iteration; the last record of an iteration counts."""
    latest: dict[str, dict[int, Evaluation]] = {}
    for evaluation in found:
        latest.setdefault(evaluation.reward, {})[evaluation.iteration] = evaluation
    return {label: [e for _, e in sorted(by_iteration.items())] for label, by_iteration in latest.items()}


def reward_range(label: str, blocks: Sequence[RewardBlock], registry: Registry) -> tuple[float, float] | None:
    """Return the (minimum, maximum) that a reward declares; None if its plugin is not installed or declares none."""
    block = next((block for block in blocks if block.label == label), None)
    if block is None:
        return None
    try:
        low, high = (float(end) for end in registry.implementation(registry.find("reward", block.use)).range)
    except Exception:  # a report must not fail because of a broken plugin
        return None
    return (low, high) if low < high else None


def _changed(path: Path) -> list[str]:
    """Return messages about files that were modified after the run: config.yaml, and logs that a checkpoint covers."""
    changed = changed_config(path)
    damaged = damages(path, list(whole_manifests(path / "checkpoints")))
    return [f"{text}." for text in ([changed] if changed else []) + [str(damage) for damage in damaged]]


def _read_log(path: Path, log: str, parse: Callable[[Any], T], problems: list[str]) -> list[T]:
    lines = RunDirectory(path).read(log)
    records = []
    for line in lines:
        try:
            records.append(parse(line))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            continue
    if len(records) < len(lines):
        problems.append(f"{len(lines) - len(records)} of {len(lines)} lines of {log} are invalid and were skipped.")
    return records


def _iteration(line: Any, least: int) -> int:
    number = line["iteration"]
    if type(number) is not int or not least <= number <= MOST:
        raise ValueError("invalid iteration")
    return number


def _numbers(line: Any, sections: Mapping[str, int]) -> Mapping[str, Any]:
    """Return the numbers of a record and of its sections, and drop everything else.

    Raises TypeError for a section that is not a mapping.
    """
    record: dict[str, Any] = {"iteration": _iteration(line, 1)}
    for key, value in line.items():
        if key in sections and value is not None:
            record[key] = _section(value, sections[key])
        elif key not in sections and key not in record and (number := _number(value, None)) is not None:
            record[key] = number
    return record


def _section(value: Any, levels: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("not a mapping")
    if levels > 1:
        return {name: _section(inner, levels - 1) for name, inner in value.items() if inner is not None}
    section: dict[str, Any] = {name: n for name, inner in value.items() if (n := _number(inner, None)) is not None}
    if isinstance(subscores := value.get("subscores"), Mapping):  # in the section of a reward
        section["subscores"] = _section(subscores, 1)
    if isinstance(rewards := value.get("rewards"), Mapping):  # in the section of a source
        section["rewards"] = _section(rewards, 2)
    return section


def _evaluation(line: Any) -> Evaluation:
    return Evaluation(
        iteration=_iteration(line, 0),
        model=str(line.get("model", "")),
        reward=str(line["reward"]),
        role=str(line.get("role", "target")),
        score=_score(line),
        groups={str(name): _score(group) for name, group in (line.get("groups") or {}).items()},
        missing=int(line.get("missing") or 0),
        sources={str(name): _score(source) for name, source in (line.get("sources") or {}).items()},
    )


def _score(data: Mapping[str, Any]) -> Score:
    value = _number(data["value"], None)
    if value is None:
        raise ValueError("no value")
    n = data.get("n")
    count = n if type(n) is int and 0 <= n <= MOST else None
    return Score(value, _number(data.get("low"), None), _number(data.get("high"), None), count)


def _read_record(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """Read run.json, which the report shows but does not require."""
    try:
        record = read_json(path)
    except FileNotFoundError:
        problems.append("run.json does not exist: versions, git state and prompt digests are unknown.")
        return {}
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or seal_of(record) == "broken":
        problems.append("run.json is invalid: versions, git state and prompt digests are unknown.")
        return {}
    return record


def _dig(record: Any, path: Sequence[str]) -> Any:
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def _number(value: Any, otherwise: Any) -> Any:
    """Return a number as a float if it is finite and within ±LARGEST, else `otherwise`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
        return float(value)
    return otherwise

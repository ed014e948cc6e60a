"""What a run directory says, read once into plain frozen records.

Logs of unfinished and of older runs are read too: a value that is not there is None (nan in columns), a line that
makes no sense is left out and mentioned in `problems`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dgpo_cli.reporting.images import Pictures, read_pictures
from dgpo_core.checkpoint import whole_manifests
from dgpo_core.description import changed_config
from dgpo_core.errors import UserError
from dgpo_core.logs import damages
from dgpo_core.run_directory import OUTCOME, RunDirectory
from dgpo_schemas.loading import load_yaml, validate
from dgpo_schemas.metrics import OutcomeRecord
from dgpo_schemas.run import RewardBlock, RunConfig
from dgpo_schemas.sealing import seal_of

if TYPE_CHECKING:
    from dgpo_core.registry import Registry

__all__ = ["Evaluation", "RunData", "Score", "read_run", "reward_range"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over `n` prompts with its 95 % interval (None where the log has none)."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One reward, or one statistic of the media, at one time; iteration 0 is the base model. `groups` are tasks by
    name; `role` is that of the log's record."""

    iteration: int
    view: str
    reward: str
    role: str
    score: Score
    groups: Mapping[str, Score]
    missing: int


@dataclass(frozen=True)
class RunData:
    """A run directory. `metrics` and `timings` hold one nested record an iteration, in order; `evaluations` are those
    of rewards by label, `statistics` those of the media by name."""

    path: Path
    config: RunConfig
    config_text: str
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timings: Mapping[int, Mapping[str, Any]]
    evaluations: Mapping[str, Sequence[Evaluation]]
    statistics: Mapping[str, Sequence[Evaluation]]
    pictures: Pictures
    ranges: Mapping[str, tuple[float, float]]
    problems: Sequence[str]
    ended_by: str | None = None
    """The end that the run has reached, as outcome.json says; None if it has not ended, or no such file is there."""

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.config.run.name

    @property
    def done(self) -> int:
        """Iterations finished."""
        logged = [record["iteration"] for record in self.metrics]
        return max([*logged, *(e.iteration for found in self.evaluations.values() for e in found)], default=0)

    @property
    def complete(self) -> bool:
        """Whether it has come to its end: the last iteration, or a limit in `stop`."""
        return self.ended_by is not None or self.done >= self.config.run.iterations

    @property
    def samples_per_iteration(self) -> int:
        """Samples rolled out an iteration."""
        return self.config.rollout.groups * self.config.rollout.group_size

    def column(self, key: str) -> NDArray[np.float64]:
        """A metric by its dotted key, one value an iteration, nan where there is none."""
        return np.array([_number(_dig(record, key), math.nan) for record in self.metrics], dtype=np.float64)

    @cached_property
    def iterations(self) -> NDArray[np.float64]:
        """Iterations of `metrics`."""
        return self.column("iteration")

    @cached_property
    def _clock(self) -> list[float]:
        spent = [_number(_dig(self.timings.get(i, {}), "seconds"), 0.0) for i in range(1, self.done + 1)]
        return list(accumulate(spent, initial=0.0))

    def seconds_at(self, iteration: float) -> float:
        """Seconds of training until the end of an iteration, without evaluations and checkpoints."""
        return self._clock[int(iteration)]

    def samples_at(self, iteration: float) -> float:
        """Samples rolled out until the end of an iteration."""
        return float(iteration * self.samples_per_iteration)


def read_run(path: Path, registry: Registry) -> RunData:
    """Read a run directory.

    Raises UserError if it is none, if nothing was logged yet, or if a file of it cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such run directory")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: not a run directory (it has no config.yaml)")
    config = validate(RunConfig, load_yaml(path / "config.yaml"))
    problems = _changed(path)
    metrics = _read_log(path, "metrics.jsonl", _with_iteration, problems)
    timings = _read_log(path, "timings.jsonl", _with_iteration, problems)
    found = _read_log(path, "evaluations.jsonl", _evaluation, problems)
    if not metrics and not found:
        raise UserError(f"{path}: nothing is logged yet: no iteration and no evaluation has finished")
    statistics = _by_label(e for e in found if e.role == "statistic")
    evaluations = _by_label(e for e in found if e.role != "statistic")
    blocks = [*(config.evaluation.rewards or ()), *config.rewards, *config.evaluation.guards.rewards]
    ranges = {label: reward_range(label, blocks, registry) for label in evaluations}
    return RunData(
        path=path,
        config=config,
        config_text=(path / "config.yaml").read_text(encoding="utf-8"),
        record=_read_record(path / "run.json", problems),
        metrics=[m for _, m in sorted({m["iteration"]: m for m in metrics}.items())],
        timings={t["iteration"]: t for t in timings},
        evaluations=evaluations,
        statistics=statistics,
        pictures=read_pictures(path / "pictures", problems),
        ranges={label: limits for label, limits in ranges.items() if limits is not None},
        problems=problems,
        ended_by=_ended_by(path / OUTCOME),
    )


def _by_label(found: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """In the order of the log, each label's by iteration; the last of an iteration counts."""
    latest: dict[str, dict[int, Evaluation]] = {}
    for evaluation in found:
        latest.setdefault(evaluation.reward, {})[evaluation.iteration] = evaluation
    return {label: [e for _, e in sorted(one.items())] for label, one in latest.items()}


def reward_range(label: str, blocks: Sequence[RewardBlock], registry: Registry) -> tuple[float, float] | None:
    """Smallest and largest value that a reward declares; None if its plugin is not installed here or says nothing."""
    block = next((block for block in blocks if block.label == label), None)
    if block is None:
        return None
    try:
        low, high = (float(end) for end in registry.implementation(registry.find("reward", block.use)).range)
    except Exception:  # somebody else's code; a report must not depend on it
        return None
    return (low, high) if low < high else None


def _changed(path: Path) -> list[str]:
    """What is not as the run wrote it: its configuration, and logs that its newest checkpoint vouches for."""
    changed = changed_config(path)
    damaged = damages(path, list(whole_manifests(path / "checkpoints")))
    return [f"{text}." for text in ([changed] if changed else []) + [str(damage) for damage in damaged]]


def _read_log(path: Path, log: str, parse: Callable[[Any], T], problems: list[str]) -> list[T]:
    try:
        lines = RunDirectory(path).read(log)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path / log}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    records = []
    for line in lines:
        try:
            records.append(parse(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    if len(records) < len(lines):
        problems.append(f"{len(lines) - len(records)} of {len(lines)} lines of {log} could not be understood.")
    return records


def _with_iteration(line: Any) -> Mapping[str, Any]:
    if not isinstance(line["iteration"], int) or line["iteration"] < 1:
        raise ValueError("no iteration")
    return dict(line)


def _evaluation(line: Any) -> Evaluation:
    if not isinstance(line["iteration"], int) or line["iteration"] < 0:
        raise ValueError("no iteration")
    return Evaluation(
        iteration=line["iteration"],
        view=str(line.get("view", "")),
        reward=str(line["reward"]),
        role=str(line.get("role", "target")),
        score=_score(line),
        groups={str(name): _score(group) for name, group in (line.get("groups") or {}).items()},
        missing=int(line.get("missing") or 0),
    )


def _score(data: Mapping[str, Any]) -> Score:
    value = _number(data["value"], None)
    if value is None:
        raise ValueError("no value")
    return Score(value, _number(data.get("low"), None), _number(data.get("high"), None), data.get("n"))


def _read_record(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """run.json, which explains a run but is not needed to show it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append("There is no run.json: versions, git state and prompt digests are unknown.")
        return {}
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or seal_of(record) == "broken":
        problems.append("run.json could not be understood: versions, git state and prompt digests are unknown.")
        return {}
    return record


def _ended_by(path: Path) -> str | None:
    """Of outcome.json, which is not there while a run goes on."""
    try:
        return OutcomeRecord.model_validate_json(path.read_bytes()).ended_by
    except (OSError, ValueError):
        return None


def _dig(record: Mapping[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _number(value: Any, otherwise: Any) -> Any:
    """A finite number as float."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return otherwise

"""Read the logs of a cell."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.storage.checkpoint import whole_manifests
from dgpo_core.storage.logs import damages
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.system.reading import read_json
from dgpo_core.training.monitors import has_left, tolerance_of
from dgpo_lab.ablation.directory import AblationDirectory, State, outcome_of
from dgpo_lab.ablation.plan import Cell
from dgpo_schemas.metrics import EvaluationRecord, PromptScores
from dgpo_schemas.text import clean

__all__ = ["MonitorValues", "Trace", "read_trace"]


@dataclass(frozen=True, slots=True)
class MonitorValues:
    """A monitored reward or media statistic at the first and the last evaluation, and at each one.

    left_at: the iteration of the first evaluation at which it was out of its tolerance; None if it never was.
    """

    first: float
    last: float
    out_of_tolerance: bool
    values: Sequence[float] = ()
    left_at: int | None = None


@dataclass(frozen=True)
class Trace:
    """The logs of a cell. scores: the deciding reward at the evaluations after `iterations` (0: the base model), with
    the `seconds` of training and the rollout `samples` until then; prompts: prompt scores of the last evaluation."""

    variant: str
    seed: int
    state: State
    ended_by: str | None = None
    iterations: Sequence[int] = ()
    scores: Sequence[float] = ()
    seconds: Sequence[float] = ()
    samples: Sequence[int] = ()
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The other evaluated rewards of the training at each evaluation, by label."""
    monitors: Mapping[str, MonitorValues] = field(default_factory=dict)
    prompts: PromptScores | None = None

    @property
    def finished(self) -> bool:
        """Whether the cell is finished and has a score; only such cells are compared."""
        return self.state.status == "finished" and len(self.scores) > 0

    @property
    def score(self) -> float:
        """The score of the last evaluation."""
        return self.scores[-1]

    def reached(self, target: float) -> int | None:
        """Return the index of the first evaluation with a score >= target; None if there is none."""
        return next((i for i, score in enumerate(self.scores) if score >= target), None)


def read_trace(cell: Cell, directory: AblationDirectory, reward: str) -> Trace:
    """Read a cell's run directory; a cell that has not started has only a state. Raises UserError for a damaged log."""
    state, run = directory.state(cell), RunDirectory(cell.path)
    try:
        damaged = damages(cell.path, list(whole_manifests(cell.path / "checkpoints")))
        if damaged:
            raise UserError("\n".join(map(str, damaged)) + "\nrestore the log from a copy, or train the cell again")
        records = [EvaluationRecord.model_validate(line) for line in _lines(run, "evaluations.jsonl")]
        timings = {
            line["iteration"]: float(line["seconds"]) for line in run.sound("timings.jsonl") if line["iteration"] > 0
        }
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{cell.path / 'evaluations.jsonl'}: cannot be read: {clean(what)}") from error
    latest: dict[str, dict[int, EvaluationRecord]] = {}
    for record in records:
        latest.setdefault(record.reward, {})[record.iteration] = record
    series = [record for _, record in sorted(latest.get(reward, {}).items())]
    outcome = outcome_of(cell)
    iterations = [record.iteration for record in series]
    rollout = cell.config.rollout
    return Trace(
        variant=cell.variant,
        seed=cell.seed,
        state=state,
        ended_by=outcome.ended_by if outcome else None,
        iterations=iterations,
        scores=[record.value for record in series],
        seconds=_clock(timings, iterations),
        samples=[i * rollout.groups * rollout.group_size for i in iterations],
        others={
            name: [record.value for _, record in sorted(found.items())]
            for name, found in latest.items()
            if name != reward and found[max(found)].role == "target"
        },
        monitors=_monitors(latest, cell.config.evaluation.monitors.tolerances),
        prompts=_prompts(cell, iterations[-1]) if iterations else None,
    )


def _lines(run: RunDirectory, log: str) -> list[Any]:
    """Read the lines of a log. Raises UserError for a damaged line."""
    found = run.read(log)
    if None in found:
        raise UserError(f"{run.path / log}: line {found.index(None) + 1} cannot be read; train the cell again")
    return found


def _clock(timings: Mapping[int, float], iterations: Sequence[int]) -> list[float]:
    """Return the training seconds until the end of each iteration; iterations without a timing count as the median."""
    median = float(np.median(list(timings.values()))) if timings else 0.0
    timed = sorted(timings)
    spent = list(accumulate((timings[i] for i in timed), initial=0.0))
    known = [bisect_right(timed, iteration) for iteration in iterations]
    return [spent[n] + median * (iteration - n) for n, iteration in zip(known, iterations, strict=True)]


def _monitors(
    latest: Mapping[str, Mapping[int, EvaluationRecord]], tolerances: Mapping[str, float]
) -> dict[str, MonitorValues]:
    found = {}
    for name, by_iteration in latest.items():
        series = [record for _, record in sorted(by_iteration.items())]
        first, last = series[0], series[-1]
        if first.role != "target":
            tolerance = tolerance_of(name, first.role, first.value, tolerances)
            left = [record.iteration for record in series if has_left(name, first, record, tolerance)]
            found[name] = MonitorValues(
                first.value,
                last.value,
                out_of_tolerance=last.iteration in left,
                values=[record.value for record in series],
                left_at=min(left, default=None),
            )
    return found


def _prompts(cell: Cell, iteration: int) -> PromptScores | None:
    try:
        return PromptScores.model_validate(read_json(cell.path / "scores" / f"{iteration:06d}.json"))
    except (OSError, ValueError):
        return None

"""The texts and table rows of the report: the outcome of a run, its key figures, and missing data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgpo_core.system.units import number, seconds
from dgpo_core.training.monitors import STATISTICS, has_left, tolerance_of
from dgpo_lab.reporting.data import Evaluation, RunData, Score
from dgpo_schemas.metrics import GroupScore

if TYPE_CHECKING:
    from dgpo_lab.ablation.statistics import Interval

__all__ = [
    "Diversity",
    "Fact",
    "MonitorRow",
    "TaskRow",
    "best",
    "digits_for",
    "diversity",
    "facts",
    "moment",
    "monitor_rows",
    "moves",
    "outcome",
    "reward_outcome",
    "scored",
    "signed",
    "task_rows",
    "times",
    "what_is_missing",
    "whose",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """A key figure at the top of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The scores of a task at the first and the last evaluation."""

    name: str
    before: Score | None
    after: Score | None
    is_mean: bool = False

    @property
    def change(self) -> float | None:
        """The difference after - before; None if either is missing."""
        return None if self.before is None or self.after is None else self.after.value - self.before.value


@dataclass(frozen=True, slots=True)
class Diversity:
    """The diversity before and after training, and what it was measured on."""

    before: float
    after: float | None
    source: str


def digits_for(scores: Iterable[Score]) -> int:
    """Return the number of decimals (2 to 4) up to the first significant digit of the widest interval."""
    widths = [s.high - s.low for s in scores if s.low is not None and s.high is not None and s.high > s.low]
    return min(4, max(2, -math.floor(math.log10(max(widths))))) if widths else 3


def scored(score: Score | Interval, digits: int) -> str:
    """Format a score with its interval: 0.48 [0.44, 0.52]."""
    value = number(score.value, digits)
    if score.low is None or score.high is None:
        return value
    return f"{value} [{number(score.low, digits)}, {number(score.high, digits)}]"


def signed(value: float | None, digits: int) -> str:
    """Format a number with its sign: +0.12 or −0.12; "" for None."""
    return "" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def moment(iteration: int) -> str:
    """Name the iteration of an evaluation."""
    return "base model" if iteration == 0 else f"iteration {iteration:,}"


def whose(iteration: int) -> str:
    """Name the iteration of an evaluation within a sentence."""
    return "of the base model" if iteration == 0 else f"after iteration {iteration:,}"


def outcome(run: RunData) -> str:
    """Summarize the target in one sentence: the first evaluated reward, or the training reward."""
    if not run.evaluations:
        return _training_outcome(run)
    return reward_outcome(run, next(iter(run.evaluations)))


def reward_outcome(run: RunData, label: str) -> str:
    """Summarize an evaluated reward in one sentence."""
    evaluations = run.evaluations[label]
    first, last = evaluations[0], evaluations[-1]
    digits = digits_for([first.score, last.score])
    before, after = scored(first.score, digits), scored(last.score, digits)
    if len(evaluations) == 1:
        return f"{label} {whose(first.iteration)} is {before}; there is no later evaluation to compare it with yet."
    if number(first.score.value, digits) == number(last.score.value, digits):
        return f"{label} did not change: {before} before, {after} after."
    rose = last.score.value > first.score.value
    sentence = f"{label} {'rose' if rose else 'fell'} from {before} to {after}"
    distance = _distance(first.score.value, last.score.value, run.ranges.get(label))
    if distance:
        sentence += f": {distance}"
    if _overlap(first.score, last.score):
        sentence += "; the intervals overlap"
    return sentence + "."


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the best evaluation, or None if the last one is the best."""
    highest = max(evaluations, key=lambda e: e.score.value)
    return highest if highest.score.value > evaluations[-1].score.value else None


def _distance(before: float, after: float, limits: tuple[float, float] | None) -> str:
    """Describe how much of the distance to the reward's upper bound was covered; "" without a rise or a bound."""
    if limits is None or not math.isfinite(limits[1]) or not before < after <= limits[1]:
        return ""
    top = limits[1]
    return f"{(after - before) / (top - before):.0%} of the distance to {top:.1f}".replace("%", " %")


def _overlap(one: Score, other: Score) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def _training_outcome(run: RunData) -> str:
    means = run.column("reward.mean")
    known = np.flatnonzero(~np.isnan(means))
    if not len(known):
        return "No samples have been scored yet."
    first, last = known[0], known[-1]
    begin, end = moment(int(run.iterations[first])), moment(int(run.iterations[last]))
    if first == last:
        return f"The training reward of {begin} is {means[first]:.3f}; there is no evaluation on held-out prompts yet."
    return (
        f"The training reward went from {means[first]:.3f} ({begin}) to {means[last]:.3f} ({end}); "
        "there is no evaluation on held-out prompts yet."
    )


def times(run: RunData) -> str | None:
    """Describe the range of the training timesteps in one sentence; None if it is not logged."""
    low, high = run.column("timesteps.t_min"), run.column("timesteps.t_max")
    if np.isnan(low).all() or np.isnan(high).all():
        return None
    return f"Training timesteps come from {run.config.timesteps.use}: {_end('t_min', low)}, {_end('t_max', high)}."


def moves(values: NDArray[np.float64]) -> bool:
    """Return whether a column has more than one distinct value."""
    return len(np.unique(values[~np.isnan(values)])) > 1


def _end(name: str, values: NDArray[np.float64]) -> str:
    known = values[~np.isnan(values)]
    return f"{name} went from {known[0]:.3f} to {known[-1]:.3f}" if moves(values) else f"{name} is {known[-1]:.3f}"


def diversity(run: RunData) -> Diversity | None:
    """Return the diversity between evaluation samples of the same prompt, or else within the training groups."""
    evaluated = run.statistics.get("diversity", ())
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        after = None if first is last else last.score.value
        return Diversity(first.score.value, after, "between samples of the same held-out prompt")
    values = run.column("diversity")
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    if len(values) == 1:
        return Diversity(float(values[0]), None, "within the groups of the only iteration")
    share = max(1, len(values) // 10)
    which = "iteration" if share == 1 else f"{share} iterations"
    source = f"within training groups, first and last {which}"
    return Diversity(float(values[:share].mean()), float(values[-share:].mean()), source)


@dataclass(frozen=True, slots=True)
class MonitorRow:
    """A monitor at the first and the last evaluation; `left`: whether it is out of tolerance."""

    name: str
    meaning: str
    before: Score
    after: Score | None
    tolerance: float
    left: bool

    @property
    def change(self) -> float | None:
        """The difference after - before; None if there is only one evaluation."""
        return None if self.after is None else self.after.value - self.before.value


def monitor_rows(run: RunData) -> list[MonitorRow]:
    """Return the monitored rewards, then the media statistics."""
    monitors = [found for found in run.evaluations.values() if found[0].role == "monitor"]
    rows = []
    for found in [*monitors, *run.statistics.values()]:
        first, last = found[0], found[-1]
        name, role = first.reward, first.role
        tolerance = tolerance_of(name, role, first.score.value, run.config.evaluation.monitors.tolerances)
        left = first is not last and has_left(name, _group(first.score), _group(last.score), tolerance)
        meaning = STATISTICS[name].summary if name in STATISTICS else "a reward that is not trained on"
        rows.append(MonitorRow(name, meaning, first.score, None if first is last else last.score, tolerance, left))
    return rows


def _group(score: Score) -> GroupScore:
    """Convert a score; without an interval in the log, both ends are the value."""
    low = score.value if score.low is None else score.low
    return GroupScore(value=score.value, low=low, high=score.value if score.high is None else score.high, n=0)


def task_rows(evaluations: Sequence[Evaluation]) -> list[TaskRow]:
    """Return one row per task in the order of the log, one per prompt source, and the mean of the tasks.

    With a single evaluation, `after` is None in all rows.
    """
    first, last = evaluations[0], evaluations[-1]
    single = first is last
    names = dict.fromkeys([*first.groups, *last.groups])
    rows = [TaskRow(n, first.groups.get(n), None if single else last.groups.get(n)) for n in names]
    sources = dict.fromkeys([*first.sources, *last.sources])
    rows += [TaskRow(f"source {n}", first.sources.get(n), None if single else last.sources.get(n)) for n in sources]
    title = "mean of tasks" if names else "all prompts"
    return [*rows, TaskRow(title, first.score, None if single else last.score, is_mean=True)]


def facts(run: RunData) -> list[Fact]:
    """Return the key figures at the top of the page."""
    total = run.config.run.iterations
    state = "complete" if run.complete else "so far"
    if run.ended_by not in (None, "iterations"):
        state = f"ended by stop.{run.ended_by}"
    found = [Fact("iterations", f"{run.done:,}" if run.complete else f"{run.done:,} of {total:,}", state)]
    samples = int(run.samples_at(len(run.metrics)))
    shape = f"{run.config.rollout.groups} groups of {run.config.rollout.group_size}"
    found.append(Fact("training samples", f"{samples:,}", f"{shape} per iteration"))
    if run.timings:
        spent = run.seconds_at(run.done)
        rate = len(run.timings) * run.samples_per_iteration / spent if spent > 0 else 0.0
        note = f"{rate:,.1f} samples per second" if rate else ""
        found.append(Fact("training time", seconds(spent), note))
    return found


def what_is_missing(run: RunData) -> list[str]:
    """Return one sentence for each kind of data that is missing, with the reason."""
    section, total, missing = run.config.evaluation, run.config.run.iterations, []
    if not run.complete:
        missing.append(f"The run is not finished: {run.done} of {total} iterations are logged.")
    if not run.evaluations:
        why = " (prompts.heldout is not set)" if run.config.prompts.heldout is None else ""
        missing.append(f"There is no evaluation yet{why}, so there are no scores by task.")
    elif all(len(evaluations) == 1 for evaluations in run.evaluations.values()):
        missing.append("There is only one evaluation, so there is nothing to compare it with yet.")
    if not run.metrics:
        missing.append("No iteration has finished, so there are no training curves.")
    elif len(run.metrics) == 1:
        missing.append("Only one iteration has finished, so there are no curves yet.")
    if run.images.first is None:
        why = " (evaluation.images is 0)" if section.images == 0 else ""
        missing.append(f"There are no images{why}.")
    elif run.images.last is None:
        missing.append("Only one evaluation has images.")
    elif not run.images.pairs:
        missing.append("The images of the first and the last evaluation cannot be paired: their prompts differ.")
    untimed = sum(record["iteration"] not in run.timings for record in run.metrics)
    if untimed:
        counted = f"{untimed} of {len(run.metrics)} iterations"
        missing.append(f"{counted} have no timings; they count as 0 seconds of training time.")
    return [*missing, *run.problems]

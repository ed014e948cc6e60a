"""The report's figures. Before is gray and after is blue everywhere; titles and captions belong to the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dgpo_lab.reporting.data import Evaluation, RunData
from dgpo_lab.reporting.summary import TaskRow
from dgpo_lab.reporting.svg import Ink, canvas, dot, label_ends, to_svg
from dgpo_lab.reporting.svg import rows as label_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "STACKED", "Axis", "axes_of", "curve", "dumbbell", "evaluation_curve", "finish", "points_each", "stacked_seconds",
    "time_unit",
]  # fmt: skip

Array = NDArray[np.float64]
POINTS = 500
"""Points of a curve at most: longer runs show the means of as many equal stretches."""
SMOOTH_FROM = 60
"""From so many points on, a running mean carries the eye."""
STACKED = {
    "measure": ("measure", Ink.MEASURE),
    "rollout": ("rollout", Ink.ROLL_OUT),
    "wait_for_scores": ("wait for scores", Ink.WAIT),
    "compute_advantages": ("compute_advantages", Ink.ADVANTAGES),
    "optimize": ("optimize", Ink.OPTIMIZE),
}
"""Phases that follow each other within an iteration; scoring itself runs beside them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What curves are drawn against: `at` turns an iteration into a position."""

    key: str
    name: str
    label: str
    at: Callable[[float], float]


def axes_of(run: RunData) -> list[Axis]:
    """Iterations; clock time where it was logged; samples."""
    axes = [Axis("iterations", "iterations", "iteration", float)]
    if run.timings:
        scale, unit = time_unit(run.seconds_at(run.done))
        axes.append(Axis("time", "training time", f"training time, {unit}", lambda i: run.seconds_at(i) / scale))
    axes.append(Axis("samples", "samples", "training samples", run.samples_at))
    return axes


def dumbbell(rows: Sequence[TaskRow], limits: tuple[float, float] | None, key: str, description: str) -> Markup:
    """Scores of tasks with intervals: hollow gray before, filled blue after, a line between."""
    with canvas(620, 62 + 34 * len(rows)) as (figure, axes):
        label_rows(axes, [row.name for row in rows], "score, mean over prompts, with 95 % interval")
        for y, row in enumerate(rows):
            size = 9 if row.is_mean else 7
            if row.before and row.after:
                axes.plot([row.before.value, row.after.value], [y, y], color=Ink.RULE, linewidth=4, zorder=1)
            for score, color, offset in ((row.before, Ink.BEFORE, 0.14), (row.after, Ink.AFTER, -0.14)):
                if score is not None:
                    dot(axes, score, y, color, hollow=color == Ink.BEFORE, size=size, offset=offset)
        if len(rows) > 1:
            axes.axhline(len(rows) - 1.5, color=Ink.RULE, linewidth=1)
        axes.get_yticklabels()[-1].set_fontweight("bold")
        if limits is not None and np.isfinite(limits).all() and _spans(rows, limits):
            margin = 0.02 * (limits[1] - limits[0])
            axes.set_xlim(limits[0] - margin, limits[1] + margin)
        return to_svg(figure, key, description)


def curve(
    x: Array,
    lines: Mapping[str, Array],
    axis: Axis,
    key: str,
    description: str,
    *,
    tolerance: Array | None = None,
    unit: str = "",
    size: tuple[float, float] = (340, 190),
    floor: float | None = None,
    whole: bool = False,
    steps: bool = False,
) -> Markup:
    """Lines [n] over iterations x [n]; the first in blue, a second in gray; `tolerance` [n] is drawn around the first.

    steps: values that were chosen and then kept, not noise about a mean: drawn as a stair, without a running mean.
    """
    position = _binned(np.array([axis.at(i) for i in x]))
    with canvas(*size) as (figure, axes):
        labels = []
        for index, (name, values) in enumerate(lines.items()):
            color = Ink.AFTER if index == 0 else Ink.BEFORE
            shown = _binned(values)
            if index == 0 and tolerance is not None:
                sharded = _binned(tolerance)
                axes.fill_between(position, shown - sharded, shown + sharded, color=Ink.AFTER, alpha=0.14, linewidth=0)
            smooth = None if steps else _running_mean(shown)
            if smooth is not None:
                axes.plot(position, shown, color=color, linewidth=0.8, alpha=0.45)
            main = shown if smooth is None else smooth
            few = np.count_nonzero(~np.isnan(main)) <= 12
            axes.plot(
                position, main, color=color, marker="o" if few else "", markersize=3.5, zorder=3 - index / 2,
                drawstyle="steps-post" if steps else "default",
            )  # fmt: skip
            known = main[~np.isnan(main)]
            labels.append((float(known[-1]), name, color))
        finish(axes, axis, unit, whole=whole)
        if floor is not None:
            axes.set_ylim(bottom=floor)
        if len(lines) > 1:
            label_ends(axes, labels)
        return to_svg(figure, key, description)


def evaluation_curve(evaluations: Sequence[Evaluation], axis: Axis, key: str, description: str) -> Markup:
    """A reward's held-out scores with intervals; its tasks as thin named lines behind."""
    x = [axis.at(e.iteration) for e in evaluations]
    with canvas(520, 280) as (figure, axes):
        labels = []
        for name in dict.fromkeys(name for e in evaluations for name in e.groups):
            values = [e.groups[name].value if name in e.groups else np.nan for e in evaluations]
            axes.plot(x, values, color=Ink.BEFORE, linewidth=1, alpha=0.6)
            known = [value for value in values if value == value]
            labels.append((known[-1], name, Ink.MUTED))
        values = [e.score.value for e in evaluations]
        for position, e in zip(x, evaluations, strict=True):
            if e.score.low is not None and e.score.high is not None:
                axes.plot([position] * 2, [e.score.low, e.score.high], color=Ink.AFTER, linewidth=1.6)
        axes.plot(x, values, color=Ink.AFTER, linewidth=2.2, marker="o", markersize=5)
        finish(axes, axis, "held-out score")
        if labels:
            label_ends(axes, [*labels, (values[-1], "mean", Ink.AFTER)])
        return to_svg(figure, key, description)


def stacked_seconds(run: RunData, axis: Axis, key: str, description: str) -> Markup:
    """Seconds of each iteration, phase upon phase."""
    iterations = sorted(run.timings)
    phases = {phase: style for phase, style in STACKED.items() if any(phase in one for one in run.phases.values())}
    seconds = {phase: _binned(np.array([run.phase_seconds(i, phase) for i in iterations])) for phase in phases}
    x = _binned(np.array(iterations, dtype=np.float64))
    half = 0.5 if len(x) < 2 else (x[1] - x[0]) / 2
    edges = np.append(x - half, x[-1] + half)
    with canvas(620, 240) as (figure, axes):
        floor = np.zeros(len(x))
        labels = []
        for phase, (name, color) in phases.items():
            top = floor + seconds[phase]
            axes.stairs(top, edges, baseline=floor, fill=True, color=color, linewidth=0)
            if seconds[phase][-1] > 0.06 * sum(s[-1] for s in seconds.values()):
                labels.append((float(floor[-1] + top[-1]) / 2, name, Ink.TEXT))
            floor = top
        finish(axes, axis, "seconds an iteration")
        axes.set_ylim(bottom=0)
        label_ends(axes, labels)
        return to_svg(figure, key, description)


def points_each(count: int) -> int:
    """How many iterations one point of a curve stands for."""
    return -(-count // POINTS)


def finish(axes: Axes, axis: Axis, unit: str, *, whole: bool = False, ticks: int = 5) -> None:
    """Labels and ticks, at most so many: `whole` numbers only for counts."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter, StrMethodFormatter

    axes.set_xlabel(axis.label)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=axis.key != "time"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}") if axis.key != "time" else ScalarFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(ticks, integer=whole))
    largest = max(map(abs, axes.get_ylim()))
    if not 1e-3 <= largest < 1e6:  # a common exponent would stand in the title's place
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if unit:
        axes.set_title(unit, loc="left", fontsize=11, color=Ink.MUTED, pad=10)


def _binned(values: Array) -> Array:
    """Means [m] of equal stretches of [n], m <= POINTS; nan where a stretch has no value."""
    width = points_each(len(values))
    if width == 1:
        return values
    padded = np.append(values, np.full(-len(values) % width, np.nan)).reshape(-1, width)
    return np.ma.filled(np.ma.masked_invalid(padded).mean(1), np.nan)


def _running_mean(values: Array) -> Array | None:
    """Centered mean over about a twentieth of the curve, over what there is at its ends; None for short curves."""
    if len(values) < SMOOTH_FROM:
        return None
    kernel = np.ones(len(values) // 20 | 1)
    known = ~np.isnan(values)
    counts = np.convolve(known.astype(np.float64), kernel, "same")
    sums = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _spans(rows: Sequence[TaskRow], limits: tuple[float, float]) -> bool:
    """Whether the scores fill enough of the reward's range to show all of it."""
    values = [s.value for row in rows for s in (row.before, row.after) if s is not None]
    inside = limits[0] <= min(values) and max(values) <= limits[1]
    return inside and max(values) - min(values) > 0.15 * (limits[1] - limits[0])


def time_unit(longest: float) -> tuple[float, str]:
    if longest < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")

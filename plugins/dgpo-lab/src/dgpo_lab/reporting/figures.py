"""The figures of the report. Before is gray and after is blue; titles and captions are in the page, not the figures."""

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
"""Maximum number of points per curve; longer runs show means over equal intervals."""
SMOOTH_FROM = 60
"""Minimum number of points for which a running mean is drawn."""
STACKED = {
    "measure": ("measure", Ink.MEASURE),
    "rollout": ("rollout", Ink.ROLLOUT),
    "wait_for_scores": ("wait for scores", Ink.WAIT),
    "compute_advantages": ("compute advantages", Ink.ADVANTAGES),
    "optimize": ("optimize", Ink.OPTIMIZE),
}
"""Phases that run one after the other within an iteration; scoring runs in parallel with them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis: `at` maps an iteration to a position."""

    key: str
    name: str
    label: str
    at: Callable[[float], float]


def axes_of(run: RunData) -> list[Axis]:
    """Return the axes of a run: iterations, training time if it was logged, samples."""
    axes = [Axis("iterations", "iterations", "iteration", float)]
    if run.timings:
        scale, unit = time_unit(run.seconds_at(run.done))
        axes.append(Axis("time", "training time", f"training time, {unit}", lambda i: run.seconds_at(i) / scale))
    axes.append(Axis("samples", "samples", "training samples", run.samples_at))
    return axes


def dumbbell(rows: Sequence[TaskRow], limits: tuple[float, float] | None, key: str, description: str) -> Markup:
    """Draw task scores with intervals: hollow gray before, filled blue after, connected by a line."""
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
    std: Array | None = None,
    unit: str = "",
    size: tuple[float, float] = (340, 190),
    floor: float | None = None,
    whole: bool = False,
    steps: bool = False,
) -> Markup:
    """Draw lines [n] over iterations x [n]; the first in blue with ±`std` [n] shaded, the second in gray.

    steps: draw a step function without a running mean, for values that are set and then kept.
    """
    position = _binned(np.array([axis.at(i) for i in x]))
    with canvas(*size) as (figure, axes):
        labels = []
        for index, (name, values) in enumerate(lines.items()):
            color = Ink.AFTER if index == 0 else Ink.BEFORE
            shown = _binned(values)
            if index == 0 and std is not None:
                half = _binned(std)
                axes.fill_between(position, shown - half, shown + half, color=Ink.AFTER, alpha=0.14, linewidth=0)
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
    """Draw the held-out scores of a reward with intervals, and its tasks as thin labeled lines behind."""
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
    """Draw the seconds of each iteration, stacked by phase."""
    iterations = sorted(run.timings)
    phases = {phase: style for phase, style in STACKED.items() if any(phase in timed for timed in run.phases.values())}
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
        finish(axes, axis, "seconds per iteration")
        axes.set_ylim(bottom=0)
        label_ends(axes, labels)
        return to_svg(figure, key, description)


def points_each(count: int) -> int:
    """Return how many iterations each point of a curve averages."""
    return -(-count // POINTS)


def finish(axes: Axes, axis: Axis, unit: str, *, whole: bool = False, ticks: int = 5) -> None:
    """Set labels and at most `ticks` ticks per axis; with `whole`, only integers on the y axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter, StrMethodFormatter

    axes.set_xlabel(axis.label)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=axis.key != "time"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}") if axis.key != "time" else ScalarFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(ticks, integer=whole))
    largest = max(map(abs, axes.get_ylim()))
    if not 1e-3 <= largest < 1e6:  # a common exponent would overlap the title
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if unit:
        axes.set_title(unit, loc="left", fontsize=11, color=Ink.MUTED, pad=10)


def _binned(values: Array) -> Array:
    """Return means [m] over equal intervals of [n], m <= POINTS; nan for intervals without a value."""
    width = points_each(len(values))
    if width == 1:
        return values
    padded = np.append(values, np.full(-len(values) % width, np.nan)).reshape(-1, width)
    return np.ma.filled(np.ma.masked_invalid(padded).mean(1), np.nan)


def _running_mean(values: Array) -> Array | None:
    """Return the centered running mean over about a twentieth of the curve (fewer values at its ends).

    Returns None for short curves.
    """
    if len(values) < SMOOTH_FROM:
        return None
    kernel = np.ones(len(values) // 20 | 1)
    known = ~np.isnan(values)
    counts = np.convolve(known.astype(np.float64), kernel, "same")
    sums = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _spans(rows: Sequence[TaskRow], limits: tuple[float, float]) -> bool:
    """Return whether the scores cover enough of the reward's range to show the whole range."""
    values = [s.value for row in rows for s in (row.before, row.after) if s is not None]
    inside = limits[0] <= min(values) and max(values) <= limits[1]
    return inside and max(values) - min(values) > 0.15 * (limits[1] - limits[0])


def time_unit(longest: float) -> tuple[float, str]:
    """Return (seconds per unit, name of the unit) for times up to `longest` seconds."""
    if longest < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")

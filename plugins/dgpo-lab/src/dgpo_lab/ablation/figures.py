"""Figures of an ablation, in the style of a run's report: the baseline is grey, a variant is blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dgpo_lab.ablation.results import Results, VariantResult
from dgpo_lab.ablation.traces import Trace
from dgpo_lab.reporting.svg import Ink, canvas, label_ends, to_svg

__all__ = ["AXES", "Band", "band", "panel", "ranking", "shared_limits"]

Array = NDArray[np.float64]
AXES = {"iterations": "iteration", "samples": "training samples", "time": "training time"}
"""What curves are drawn against; the names that the page's switch knows."""
GRID = 60
"""Points of a curve whose seeds were evaluated at different times."""


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, smallest and largest score over seeds at positions x, all [n]."""

    x: Array
    mean: Array
    low: Array
    high: Array


def band(traces: Sequence[Trace], axis: str) -> Band | None:
    """Held-out scores over seeds against iterations, samples or time; None unless there are two positions.

    It ends where the first seed ends: a mean over those that happened to go on longer would be of other seeds. Against
    time, where seeds are evaluated at different moments, scores are interpolated between them.
    """
    rows = [(np.array(_positions(trace, axis)), np.array(trace.scores)) for trace in traces if len(trace.scores) > 1]
    if not rows:
        return None
    common = sorted(set.intersection(*({float(x) for x in positions} for positions, _ in rows)))
    if axis == "time" or len(common) < 2:
        start, end = max(x[0] for x, _ in rows), min(x[-1] for x, _ in rows)
        if not end > start:
            return None
        common = list(np.linspace(start, end, GRID))
    x = np.array(common)
    scores = np.stack([np.interp(x, positions, values) for positions, values in rows])
    return Band(x, scores.mean(0), scores.min(0), scores.max(0))


def _positions(trace: Trace, axis: str) -> Sequence[float]:
    return {"iterations": trace.iterations, "samples": trace.samples, "time": trace.seconds}[axis]


def shared_limits(results: Results) -> tuple[float, float]:
    """Smallest and largest score of any finished cell, with a margin: panels are to be compared."""
    scores = [score for trace in results.traces if trace.finished for score in trace.scores]
    if results.target is not None:
        scores.append(results.target)
    low, high = min(scores), max(scores)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def panel(
    variant: VariantResult,
    baseline: VariantResult,
    axis: str,
    limits: tuple[float, float],
    target: float | None,
    key: str,
) -> Markup | None:
    """A variant's mean over seeds with a band from the lowest to the highest seed; behind it the baseline's, of the
    same seeds."""
    mine = band(variant.finished, axis)
    if mine is None:
        return None
    seeds = {trace.seed for trace in variant.finished}
    paired = [trace for trace in baseline.finished if trace.seed in seeds]
    theirs = None if variant is baseline else band(paired, axis)
    scale, unit = 1.0, ""
    if axis == "time":
        longest = max(found.x[-1] for found in (mine, theirs) if found is not None)
        scale, unit = (1.0, ", seconds") if longest < 180 else (60.0, ", minutes")
        scale, unit = (scale, unit) if longest < 3 * 3600 else (3600.0, ", hours")
    ends = f"from {mine.mean[0]:.3f} to {mine.mean[-1]:.3f}"
    said = f"{variant.name}: mean held-out score over {len(variant.finished)} seeds against {AXES[axis]}, {ends}."
    with canvas(340, 210) as (figure, axes):
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter

        labels = []
        for found, colour, name in ((theirs, Ink.BEFORE, "baseline"), (mine, Ink.AFTER, "mean")):
            if found is None:
                continue
            x = found.x / scale
            axes.fill_between(x, found.low, found.high, color=colour, alpha=0.16, linewidth=0)
            few = len(x) <= 12 and axis != "time"
            axes.plot(x, found.mean, color=colour, marker="o" if few else "", markersize=3.5)
            labels.append((float(found.mean[-1]), name, colour))
        if target is not None:
            axes.axhline(target, color=Ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_ylim(*limits)
        axes.set_xlabel(AXES[axis] + unit)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=axis != "time"))
        if axis != "time":
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_title("held-out score", loc="left", fontsize=11, color=Ink.MUTED, pad=10)
        if len(labels) > 1:
            label_ends(axes, [(value, {"mean": "variant"}.get(name, name), colour) for value, name, colour in labels])
        return to_svg(figure, key, said)


def ranking(results: Results) -> Markup | None:
    """Every variant's score with its interval, a dot for each seed; the baseline's mean is a line through all."""
    scored = [variant for variant in results.variants if variant.score is not None]
    if not scored:
        return None
    base = next((variant for variant in scored if variant.name == results.baseline), None)
    said = f"{results.reward}: " + "; ".join(f"{v.name} {v.score.value:.3f}" for v in scored if v.score)
    with canvas(620, 70 + 36 * len(scored)) as (figure, axes):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        if base is not None and base.score is not None:
            axes.axvline(base.score.value, color=Ink.BEFORE, linewidth=1.2)
        if results.target is not None:
            axes.axvline(results.target, color=Ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for y, variant in enumerate(scored):
            assert variant.score is not None
            colour = Ink.BEFORE if variant is base else Ink.AFTER
            if variant.score.low is not None and variant.score.high is not None:
                axes.plot([variant.score.low, variant.score.high], [y, y], color=colour, linewidth=2.2, zorder=2)
            seeds = [trace.score for trace in variant.finished]
            axes.plot(seeds, [y + 0.26] * len(seeds), "o", markersize=3.5, color=colour, alpha=0.55, zorder=2)
            axes.plot(
                [variant.score.value], [y], "o", markersize=8, markerfacecolor=Ink.PAPER if variant is base else colour,
                markeredgecolor=colour, markeredgewidth=1.8, zorder=3,
            )  # fmt: skip
        axes.set_yticks(range(len(scored)), [variant.name for variant in scored], fontsize=12)
        axes.tick_params(axis="y", labelcolor=Ink.TEXT)
        axes.set_ylim(len(scored) - 0.4, -0.6)
        axes.set_xlabel(f"{results.reward}, mean with 95 % interval; small dots are seeds")
        return to_svg(figure, "ranking", said)

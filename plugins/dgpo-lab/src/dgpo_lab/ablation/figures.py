"""Figures of an ablation, in the style of a run's report: the baseline is gray, a variant is blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dgpo_lab.ablation.results import Results, VariantResult
from dgpo_lab.ablation.traces import Trace
from dgpo_lab.reporting.figures import Axis, finish, time_unit
from dgpo_lab.reporting.svg import Ink, canvas, dot, label_ends, rows, to_svg

__all__ = ["AXES", "SeedRange", "panel", "ranking", "seed_range", "shared_limits"]

Array = NDArray[np.float64]
AXES = {"iterations": "iteration", "samples": "training samples", "time": "training time"}
"""What curves are drawn against; the names that the page's switch knows."""
GRID = 60
"""Points of a curve whose seeds were evaluated at different times."""


@dataclass(frozen=True, slots=True)
class SeedRange:
    """Mean, smallest and largest score over seeds at positions x, all [n]."""

    x: Array
    mean: Array
    low: Array
    high: Array


def seed_range(traces: Sequence[Trace], axis: str) -> SeedRange | None:
    """Return the held-out scores over seeds against iterations, samples or time; None for fewer than two positions.

    The curve ends where the first seed ends, so that every mean is over the same seeds. Against time, where seeds are
    evaluated at different moments, scores are interpolated.
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
    return SeedRange(x, scores.mean(0), scores.min(0), scores.max(0))


def _positions(trace: Trace, axis: str) -> Sequence[float]:
    return {"iterations": trace.iterations, "samples": trace.samples, "time": trace.seconds}[axis]


def shared_limits(results: Results) -> tuple[float, float]:
    """Return the limits of all finished cells' scores with a margin, so that panels can be compared."""
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
    """Draw a variant's mean over seeds, shaded from the lowest to the highest seed, and the baseline of the same seeds.

    Returns None if the variant has fewer than two positions.
    """
    mine = seed_range(variant.finished, axis)
    if mine is None:
        return None
    seeds = {trace.seed for trace in variant.finished}
    paired = [trace for trace in baseline.finished if trace.seed in seeds]
    theirs = None if variant is baseline else seed_range(paired, axis)
    scale, unit = 1.0, ""
    if axis == "time":
        scale, unit = time_unit(max(found.x[-1] for found in (mine, theirs) if found is not None))
    ends = f"from {mine.mean[0]:.3f} to {mine.mean[-1]:.3f}"
    said = f"{variant.name}: mean held-out score over {len(variant.finished)} seeds against {AXES[axis]}, {ends}."
    with canvas(340, 210) as (figure, axes):
        labels = []
        for found, color, name in ((theirs, Ink.BEFORE, "baseline"), (mine, Ink.AFTER, "variant")):
            if found is None:
                continue
            x = found.x / scale
            axes.fill_between(x, found.low, found.high, color=color, alpha=0.16, linewidth=0)
            few = len(x) <= 12 and axis != "time"
            axes.plot(x, found.mean, color=color, marker="o" if few else "", markersize=3.5)
            labels.append((float(found.mean[-1]), name, color))
        if target is not None:
            axes.axhline(target, color=Ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_ylim(*limits)
        name = AXES[axis] + (f", {unit}" if unit else "")
        finish(axes, Axis(axis, AXES[axis], name, float), "held-out score", ticks=4)
        if len(labels) > 1:
            label_ends(axes, labels)
        return to_svg(figure, key, said)


def ranking(results: Results) -> Markup | None:
    """Draw each variant's score with its interval and a dot per seed, and a vertical line at the baseline's mean."""
    scored = [variant for variant in results.variants if variant.score is not None]
    if not scored:
        return None
    base = next((variant for variant in scored if variant.name == results.baseline), None)
    said = f"{results.reward}: " + "; ".join(f"{v.name} {v.score.value:.3f}" for v in scored if v.score)
    with canvas(620, 70 + 36 * len(scored)) as (figure, axes):
        label = f"{results.reward}, mean with 95 % interval; small dots are seeds"
        rows(axes, [variant.name for variant in scored], label, room=0.6)
        if base is not None and base.score is not None:
            axes.axvline(base.score.value, color=Ink.BEFORE, linewidth=1.2)
        if results.target is not None:
            axes.axvline(results.target, color=Ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for y, variant in enumerate(scored):
            color = Ink.BEFORE if variant is base else Ink.AFTER
            dot(axes, variant.score, y, color, hollow=variant is base, size=8, width=2.2)
            seeds = [trace.score for trace in variant.finished]
            axes.plot(seeds, [y + 0.26] * len(seeds), "o", markersize=3.5, color=color, alpha=0.55, zorder=2)
        return to_svg(figure, "ranking", said)

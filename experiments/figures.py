"""Draw the figure of a page: scores with intervals on the left, learning curves on the right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_lab.ablation.figures import seed_range
from dgpo_lab.ablation.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

COLORS = ("#6b7280", "#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d")
"""The baseline is gray, as in reports; variants have the same color in all panels."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles of curves: each is used with all colors before the next one is."""
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
    "text.color": "#111827",
    "font.size": 10,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
}
LABELS = {"samples": "training samples", "seconds": "training seconds"}


def draw(results: Results, against: Sequence[str], path: Path, *, log: bool = False) -> None:
    """Write the figure as a PNG file. log: curves against the logarithm, for variants of very different lengths."""
    import matplotlib
    from matplotlib.figure import Figure

    against = against if any(len(trace.scores) > 2 for trace in results.traces) else ()
    with matplotlib.rc_context(STYLE):
        columns = 1 + len(against)
        height = max(3.2, 1.1 + 0.42 * len(results.variants))
        figure = Figure(figsize=(4.6 * columns if against else 7.0, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        _scores(axes[0], results)
        for one, what in zip(axes[1:], against, strict=True):
            _curves(one, results, what)
            if log:
                one.set_xscale("log")
        if against:
            if len(results.variants) <= len(COLORS):
                axes[-1].legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
            else:
                figure.legend(
                    *axes[-1].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _scores(axes: Axes, results: Results) -> None:
    for y, (variant, (color, _)) in enumerate(zip(results.variants, _styles(results), strict=True)):
        if variant.score is None:
            continue
        if variant.score.low is not None and variant.score.high is not None:
            axes.plot([variant.score.low, variant.score.high], [y, y], color=color, linewidth=2.2)
        seeds = [trace.score for trace in variant.finished]
        axes.plot(seeds, [y + 0.25] * len(seeds), "o", markersize=3, color=color, alpha=0.6)
        axes.plot([variant.score.value], [y], "o", markersize=7, color=color)
    if results.base_model is not None:
        axes.axvline(results.base_model.value, color="#9ca3af", linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            results.base_model.value,
            len(results.variants) - 0.42,
            " base model",
            fontsize=8,
            color="#6b7280",
            va="bottom",
        )
    axes.set_yticks(range(len(results.variants)), [variant.name for variant in results.variants])
    axes.set_ylim(len(results.variants) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{results.reward}: mean, 95 % interval; small dots are seeds")


def _curves(axes: Axes, results: Results, what: str) -> None:
    for variant, (color, dashes) in zip(results.variants, _styles(results), strict=True):
        found = seed_range(variant.finished, "time" if what == "seconds" else what)
        if found is None:
            continue
        few = len(found.x) <= 12
        style: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": "o" if few else "", "markersize": 3}
        axes.plot(found.x, found.mean, label=variant.name, **style)
        if len(results.variants) <= 3:
            axes.fill_between(found.x, found.low, found.high, color=color, alpha=0.12, linewidth=0)
    if results.target is not None:
        axes.axhline(results.target, color="#9ca3af", linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xlabel(LABELS[what] + ("; shaded: range of all seeds" if len(results.variants) <= 3 else ""))
    axes.set_ylabel("held-out score, mean over seeds")


def _styles(results: Results) -> list[tuple[str, Any]]:
    """Return the color and the line style of each variant; the baseline gets the first of `COLORS`."""
    others = cycle((color, dashes) for dashes in DASHES for color in COLORS[1:])
    return [(COLORS[0], DASHES[0]) if v.name == results.baseline else next(others) for v in results.variants]

"""The page's figures: how costs grow, and what settings cost against their prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scaling import PHASES, SERIES, Series
from experiments.figures import COLORS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

NAMES = {"rollout": "rollout", "optimize": "optimize"}


def draw(record: dict[str, Any], directory: Path) -> None:
    """Write scaling.png and choices.png, of what was measured."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        if "scaling" in record:
            figure = Figure(figsize=(12.8, 3.4), layout="constrained")
            for axes, series in zip(figure.subplots(1, len(SERIES)), SERIES, strict=True):
                _scaling(axes, series, record["scaling"]["measured"][series.name])
            _save(figure, directory / "scaling.png")
        if "choices" in record:
            figure = Figure(figsize=(8.4, 3.2), layout="constrained")
            _choices(figure.subplots(), record["choices"]["measured"])
            _save(figure, directory / "choices.png")


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _scaling(axes: Axes, series: Series, points: list[dict[str, Any]]) -> None:
    numbers = [point["number"] for point in points]
    for phase, color in zip(PHASES, COLORS[1:], strict=False):
        first = points[0]["seconds"][phase]
        axes.plot(
            numbers, [p["seconds"][phase] / first for p in points], "o-", markersize=4, color=color, label=NAMES[phase]
        )
    if series.samples:
        axes.plot(
            numbers, [n / numbers[0] for n in numbers], color=COLORS[0], linewidth=1, linestyle=(0, (4, 3)), zorder=1,
            label="in proportion",
        )  # fmt: skip
        axes.legend(fontsize=8, frameon=False)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(series.title.split(" (")[0])
    axes.set_ylabel("seconds, relative to the first")


def _choices(axes: Axes, outcomes: list[dict[str, Any]]) -> None:
    for y, outcome in enumerate(outcomes):
        axes.plot([outcome["predicted"], outcome["measured"]], [y, y], color="#d1d5db", linewidth=2, zorder=1)
        axes.plot([outcome["predicted"]], [y], "o", markersize=7, markerfacecolor="white", color=COLORS[0],
                  label="predicted" if y == 0 else None)  # fmt: skip
        axes.plot([outcome["measured"]], [y], "o", markersize=7, color=COLORS[1],
                  label="measured" if y == 0 else None)  # fmt: skip
    axes.axvline(1, color="#9ca3af", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(outcomes)), [outcome["name"] for outcome in outcomes])
    axes.set_ylim(len(outcomes) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds of the phase with it, over seconds without")
    axes.legend(fontsize=8, frameon=False, loc="lower right")

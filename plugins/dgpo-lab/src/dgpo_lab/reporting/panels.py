"""Small figures of training: each reward with its subscores, and the other metrics that are logged per iteration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dgpo_core.training.monitors import PIXELWISE, STATISTICS
from dgpo_lab.reporting import summary
from dgpo_lab.reporting.data import RunData
from dgpo_lab.reporting.diagnostics import COUNTS, OPTIMIZATION, Diagnostic
from dgpo_lab.reporting.figures import Axis, curve

__all__ = ["Panel", "diagnostics", "ends", "of_rewards", "of_subscores", "training_reward"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Panel:
    """One small figure with its title and meaning; `text` replaces the figure if there is nothing to draw."""

    title: str
    note: str
    svg: Markup | None = None
    text: str = ""


DIAGNOSTICS = (
    *OPTIMIZATION,
    *(
        Diagnostic(name.replace("_", " ").capitalize(), f"of the samples: {STATISTICS[name].summary}",
                   {name: f"statistics.{name}"}, "mean", None)
        for name in PIXELWISE
    ),
    *COUNTS,
)  # fmt: skip


def training_reward(run: RunData, axes: Sequence[Axis]) -> dict[str, Markup]:
    """Draw the mean and standard deviation of the training reward for each axis key; empty for fewer than two means."""
    mean, std = run.column("reward.mean"), run.column("reward.std")
    if _count(mean) < 2:
        return {}
    description = f"Training reward over {len(mean)} iterations, {ends(mean)}."
    unit, size = "reward of the samples", (520, 280)
    return {
        axis.key: curve(
            run.iterations, {"mean": mean}, axis, f"r-{axis.key}", description, std=std, unit=unit, size=size
        )
        for axis in axes
    }


def of_rewards(run: RunData, axis: Axis) -> list[Panel]:
    """Draw each reward separately if there are several."""
    labels = run.names("rewards")
    curves = [(label, "before weighting", f"reward {label}", ("rewards", label)) for label in labels]
    return _means(run, axis, "p", curves if len(labels) > 1 else [])


def of_subscores(run: RunData, axis: Axis) -> list[Panel]:
    """Draw the reward of each prompt source, and the subscores of each reward that reports them."""
    sources = [(f"source {name}", "weighted sum of its rewards", f"reward of source {name}", ("sources", name))
               for name in run.names("sources")]  # fmt: skip
    panels = _means(run, axis, "o", sources)
    for index, label in enumerate(run.names("rewards")):
        for number, name in enumerate(run.names("rewards", label, "subscores")):
            column = run.values("rewards", label, "subscores", name)
            if _count(column) > 1:
                description = f"{label}, {name}: {ends(column)}"
                svg = curve(run.iterations, {name: column}, axis, f"q{index}-{number}", description, unit="mean")
                panels.append(Panel(f"{label}: {name}", "subscore of the reward", svg))
    return panels


def _means(run: RunData, axis: Axis, key: str, curves: Iterable[tuple[str, str, str, Sequence[str]]]) -> list[Panel]:
    """Draw means with standard deviations; each of `curves` is (title, note, name, path in the log)."""
    panels = []
    for index, (title, note, what, path) in enumerate(curves):
        mean, std = (run.values(*path, statistic) for statistic in ("mean", "std"))
        if _count(mean) > 1:
            text = f"Training {what}, {ends(mean)}."
            svg = curve(run.iterations, {path[-1]: mean}, axis, f"{key}{index}", text, std=std, unit="mean ± std")
            panels.append(Panel(title, note, svg))
    return panels


def diagnostics(run: RunData, axis: Axis) -> list[Panel]:
    """Draw the timestep range if it changes, the fixed panels, and the other metrics of the objective."""
    extra = [
        Diagnostic(name, "reported by the objective", {name: f"extra.{name}"}, "", None) for name in run.names("extra")
    ]
    return [_panel(run, metric, axis, f"d{i}") for i, metric in enumerate([*_times(run), *DIAGNOSTICS, *extra])]


def _times(run: RunData) -> list[Diagnostic]:
    """Return the ends of the timestep range that change, then the other metrics of the timestep policy."""
    range_ends = {name: f"timesteps.{name}" for name in ("t_min", "t_max")}
    moving = {name: column for name, column in range_ends.items() if summary.moves(run.column(column))}
    note, by = "range of σ in which the loss is computed", f"reported by {run.config.timesteps.use}"
    changing = [Diagnostic("Training timesteps", note, moving, "σ", None, steps=True)] if moving else []
    others = [name for name in run.names("timesteps") if name not in range_ends]
    return changing + [
        Diagnostic(name.replace("_", " ").capitalize(), by, {name: f"timesteps.{name}"}, "", None, steps=True)
        for name in others
    ]


def _panel(run: RunData, metric: Diagnostic, axis: Axis, key: str) -> Panel:
    columns = {name: run.column(column) for name, column in metric.columns.items()}
    known = {name: values[~np.isnan(values)] for name, values in columns.items() if _count(values)}
    if not known:
        return Panel(metric.title, metric.note, text="not logged")
    if all(len(values) == 1 for values in known.values()):
        single = [f"{name} {values[0]:.4g}" if len(known) > 1 else f"{values[0]:.4g}" for name, values in known.items()]
        return Panel(metric.title, metric.note, text=", ".join(single))
    first = next(iter(known.values()))
    if len(known) == 1 and (first == first[0]).all():
        return Panel(metric.title, metric.note, text=f"{first[0]:.4g} throughout")
    description = "; ".join(f"{metric.title}, {name}: {ends(values)}" for name, values in known.items())
    svg = curve(
        run.iterations, {name: columns[name] for name in known}, axis, key, description,
        unit=metric.unit, floor=metric.floor, whole=metric.whole, steps=metric.steps,
    )  # fmt: skip
    return Panel(metric.title, metric.note, svg)


def ends(values: Array) -> str:
    """Return the first and the last value of a column as text."""
    known = values[~np.isnan(values)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}"


def _count(values: Array) -> int:
    return int(np.count_nonzero(~np.isnan(values)))

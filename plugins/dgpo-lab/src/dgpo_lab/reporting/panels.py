"""Small figures of training: each reward and what it is made of, and what else was logged of every iteration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dgpo_core.training.monitors import PIXELWISE, STATISTICS
from dgpo_lab.reporting import summary
from dgpo_lab.reporting.data import RunData
from dgpo_lab.reporting.figures import Axis, curve

__all__ = ["Panel", "diagnostics", "ends", "of_rewards", "of_subscores", "training_reward"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Panel:
    """One small figure with its title and meaning; where there is nothing to draw, `text` says so instead."""

    title: str
    note: str
    svg: Markup | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A metric worth a panel: its columns by the name of the line, and what it means."""

    title: str
    note: str
    columns: Mapping[str, str]
    unit: str
    floor: float | None = 0.0
    whole: bool = False
    steps: bool = False


DIAGNOSTICS = (
    Diagnostic("KL", "mean squared distance of the policy's velocity from the base's", {"kl": "kl"},
               "mean (v − v_base)²"),
    Diagnostic("Denoising error", "of the policy and of the reference, on the same noise",
               {"policy": "dsm", "reference": "dsm_reference"}, "mean squared error", None),
    Diagnostic("σ(S_g)", "weight of a group's gradient: 0.5 at first, towards 0 once the policy prefers what the "
               "rewards prefer", {"sigmoid": "sigmoid"}, "mean", None),
    Diagnostic("Clip fraction", "share of members whose gradient was clipped", {"clipped": "clip_fraction"},
               "share of members"),
    Diagnostic("Gradient norm", "before clipping", {"norm": "grad_norm"}, "norm"),
    Diagnostic("Change of the weights", "norm of the adapter's weights, or of the change of all weights",
               {"norm": "change_norm"}, "norm"),
    Diagnostic("Zero-variance groups", "all rewards equal: they teach nothing", {"groups": "zero_variance_groups"},
               "groups an iteration", whole=True),
    Diagnostic("Residual", "mean |sum of signed weights| of a group: 0 where the partition function cancels",
               {"residual": "residual"}, "|Σ c|"),
    Diagnostic("Diversity", "mean pairwise distance within groups; a collapse shows here first",
               {"diversity": "diversity"}, "rms of pixels in [0, 1]", None),
    *(
        Diagnostic(name.replace("_", " ").capitalize(), f"of the samples: {STATISTICS[name].summary}",
                   {name: f"statistics.{name}"}, "mean", None)
        for name in PIXELWISE
    ),
    Diagnostic("Missing rewards", "samples that could not be scored", {"missing": "missing_rewards"},
               "samples an iteration", whole=True),
    Diagnostic("Skipped updates", "non-finite losses or gradients, so far", {"skipped": "skipped_updates"}, "updates",
               whole=True),
    Diagnostic("Learning rate", "of the last update", {"rate": "learning_rate"}, ""),
)  # fmt: skip


def training_reward(run: RunData, axes: Sequence[Axis]) -> dict[str, Markup]:
    """Mean and spread of the training reward, by the key of the axis; empty for less than two of them."""
    mean, std = run.column("reward.mean"), run.column("reward.std")
    if _count(mean) < 2:
        return {}
    said = f"Training reward over {len(mean)} iterations, {ends(mean)}."
    unit, size = "reward of the samples", (520, 280)
    return {
        axis.key: curve(
            run.iterations, {"mean": mean}, axis, f"r-{axis.key}", said, tolerance=std, unit=unit, size=size
        )
        for axis in axes
    }


def of_rewards(run: RunData, axis: Axis) -> list[Panel]:
    """Each reward by itself where there are several."""
    labels = run.names("rewards")
    wanted = [(label, "before weighting", f"reward {label}", ("rewards", label)) for label in labels]
    return _means(run, axis, "p", wanted if len(labels) > 1 else [])


def of_subscores(run: RunData, axis: Axis) -> list[Panel]:
    """The reward of each source of prompts, and what each reward is made of, where it says so."""
    sources = [(f"source {name}", "weighted sum of its rewards", f"reward of source {name}", ("sources", name))
               for name in run.names("sources")]  # fmt: skip
    panels = _means(run, axis, "o", sources)
    for index, label in enumerate(run.names("rewards")):
        for place, name in enumerate(run.names("rewards", label, "subscores")):
            column = run.values("rewards", label, "subscores", name)
            if _count(column) > 1:
                said = f"{label}, {name}: {ends(column)}"
                svg = curve(run.iterations, {name: column}, axis, f"q{index}-{place}", said, unit="mean")
                panels.append(Panel(f"{label}: {name}", "part of the reward", svg))
    return panels


def _means(run: RunData, axis: Axis, key: str, wanted: Iterable[tuple[str, str, str, Sequence[str]]]) -> list[Panel]:
    """Means with their spread: (title, note, what it is, where it is logged) each."""
    panels = []
    for index, (title, note, what, path) in enumerate(wanted):
        mean, std = (run.values(*path, subscore) for subscore in ("mean", "std"))
        if _count(mean) > 1:
            said = f"Training {what}, {ends(mean)}."
            svg = curve(run.iterations, {path[-1]: mean}, axis, f"{key}{index}", said, tolerance=std, unit="mean ± std")
            panels.append(Panel(title, note, svg))
    return panels


def diagnostics(run: RunData, axis: Axis) -> list[Panel]:
    """The times if they move, the fixed panels, and what else the objective reported."""
    extra = [
        Diagnostic(name, "reported by the objective", {name: f"extra.{name}"}, "", None) for name in run.names("extra")
    ]
    return [_panel(run, one, axis, f"d{i}") for i, one in enumerate([*_times(run), *DIAGNOSTICS, *extra])]


def _times(run: RunData) -> list[Diagnostic]:
    """The range of the training times where an end of it moves, then what else the timestep policy told."""
    range_ends = {name: f"timesteps.{name}" for name in ("t_min", "t_max")}
    moving = {name: column for name, column in range_ends.items() if summary.moves(run.column(column))}
    note, by = "range of σ that the loss is taken in", f"reported by {run.config.timesteps.use}"
    found = [Diagnostic("Training times", note, moving, "σ", None, steps=True)] if moving else []
    others = [name for name in run.names("timesteps") if name not in range_ends]
    return found + [
        Diagnostic(name.replace("_", " ").capitalize(), by, {name: f"timesteps.{name}"}, "", None, steps=True)
        for name in others
    ]


def _panel(run: RunData, wanted: Diagnostic, axis: Axis, key: str) -> Panel:
    columns = {name: run.column(column) for name, column in wanted.columns.items()}
    known = {name: values[~np.isnan(values)] for name, values in columns.items() if _count(values)}
    if not known:
        return Panel(wanted.title, wanted.note, text="not logged")
    if all(len(values) == 1 for values in known.values()):
        single = [f"{name} {values[0]:.4g}" if len(known) > 1 else f"{values[0]:.4g}" for name, values in known.items()]
        return Panel(wanted.title, wanted.note, text=", ".join(single))
    first = next(iter(known.values()))
    if len(known) == 1 and (first == first[0]).all():
        return Panel(wanted.title, wanted.note, text=f"{first[0]:.4g} throughout")
    said = "; ".join(f"{wanted.title}, {name}: {ends(values)}" for name, values in known.items())
    svg = curve(
        run.iterations, {name: columns[name] for name in known}, axis, key, said,
        unit=wanted.unit, floor=wanted.floor, whole=wanted.whole, steps=wanted.steps,
    )  # fmt: skip
    return Panel(wanted.title, wanted.note, svg)


def ends(values: Array) -> str:
    """The first and the last value of a column."""
    known = values[~np.isnan(values)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}"


def _count(values: Array) -> int:
    return int(np.count_nonzero(~np.isnan(values)))

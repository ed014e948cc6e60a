"""A run's page: figures and tables put together and set by `page.html.jinja`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from dgpo_core.config.changes import history
from dgpo_core.data.prompts import counted
from dgpo_core.system.units import number, seconds
from dgpo_core.training.guards import PIXELWISE, STATISTICS
from dgpo_lab.reporting import figures, summary
from dgpo_lab.reporting.data import Evaluation, RunData, Score
from dgpo_lab.reporting.figures import STACKED, Axis

__all__ = ["render"]


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
    Diagnostic(
        "KL", "mean squared distance of the policy's velocity from the base's", {"kl": "kl"}, "mean (v − v_base)²"
    ),
    Diagnostic(
        "Denoising error",
        "of the policy and of the reference, on the same noise",
        {"policy": "dsm", "reference": "dsm_reference"},
        "mean squared error",
        None,
    ),
    Diagnostic(
        "σ(S_g)",
        "weight of a group's gradient: 0.5 at first, towards 0 once the policy prefers what the rewards prefer",
        {"sigmoid": "sigmoid"},
        "mean",
        None,
    ),
    Diagnostic(
        "Clip fraction", "share of members whose gradient was clipped", {"clipped": "clip_fraction"}, "share of members"
    ),
    Diagnostic("Gradient norm", "before clipping", {"norm": "grad_norm"}, "norm"),
    Diagnostic(
        "Change of the weights",
        "norm of the adapter's weights, or of the change of all weights",
        {"norm": "change_norm"},
        "norm",
    ),
    Diagnostic(
        "Zero-variance groups",
        "all rewards equal: they teach nothing",
        {"groups": "zero_variance_groups"},
        "groups an iteration",
        whole=True,
    ),
    Diagnostic(
        "Residual",
        "mean |sum of signed weights| of a group: 0 where the partition function cancels",
        {"residual": "residual"},
        "|Σ c|",
    ),
    Diagnostic(
        "Diversity",
        "mean pairwise distance within groups; a collapse shows here first",
        {"diversity": "diversity"},
        "rms of pixels in [0, 1]",
        None,
    ),
    *(
        Diagnostic(
            name.replace("_", " ").capitalize(),
            f"of the samples: {STATISTICS[name].summary}",
            {name: f"statistics.{name}"},
            "mean",
            None,
        )
        for name in PIXELWISE
    ),
    Diagnostic(
        "Missing rewards",
        "samples that could not be scored",
        {"missing": "missing_rewards"},
        "samples an iteration",
        whole=True,
    ),
    Diagnostic(
        "Skipped updates",
        "non-finite losses or gradients, so far",
        {"skipped": "skipped_updates"},
        "updates",
        whole=True,
    ),
    Diagnostic("Learning rate", "of the last update", {"rate": "learning_rate"}, ""),
)
VERBS = ("measure", "roll_out", "score", "wait_for_scores", "weigh", "optimise", "evaluate", "checkpoint")


def render(run: RunData) -> str:
    """The page as HTML text, complete in itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dgpo_lab.reporting", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "scored": summary.scored, "moment": summary.moment, "signed": _signed}
    axes = figures.axes_of(run)
    return environment.get_template("page.html.jinja").render(
        run=run,
        outcome=summary.outcome(run),
        facts=summary.facts(run),
        missing=summary.what_is_missing(run),
        rewards=[_reward_view(run, label, i) for i, label in enumerate(run.evaluations)],
        diversity=_diversity_view(run),
        guards=summary.guard_rows(run),
        axes=axes,
        reward_curves=_reward_curves(run, axes),
        evaluation_curves=_evaluation_curves(run, axes),
        reward_panels=_reward_panels(run, axes[0]),
        part_panels=[*_source_panels(run, axes[0]), *_part_panels(run, axes[0])],
        times=summary.times(run),
        diagnostics=[_diagnostic(run, d, axes[0], f"d{i}") for i, d in enumerate(_wanted(run))],
        points_each=figures.points_each(len(run.metrics)),
        time=_time_view(run, axes[0]),
        provenance=_provenance(run.record),
        versions=_texts(run.record.get("versions")),
        plugins=_texts(run.record.get("plugins")),
    )


# -- scores ---------------------------------------------------------------------------------------------------------


def _reward_view(run: RunData, label: str, index: int) -> dict[str, Any]:
    evaluations = run.evaluations[label]
    first, last = evaluations[0], evaluations[-1]
    rows = summary.task_rows(evaluations)
    every = [score for row in rows for score in (row.before, row.after) if score is not None]
    best = summary.best(evaluations)
    words = [f"{row.name} {row.before.value:.3f}" for row in rows if row.before]
    if first is not last:
        words = [f"{row.name} {_value(row.before)} to {_value(row.after)}" for row in rows]
    return {
        "label": label,
        "sentence": summary.reward_outcome(run, label),
        "first": first,
        "last": None if first is last else last,
        "best": best,
        "rows": rows,
        "digits": summary.digits_for([first.score, last.score]),
        "table_digits": summary.digits_for(every),
        "has_counts": any(score.n is not None for score in every),
        "svg": figures.dumbbell(rows, run.ranges.get(label), f"s{index}", f"Scores of {label}: " + "; ".join(words)),
    }


def _diversity_view(run: RunData) -> dict[str, Any] | None:
    found = summary.diversity(run)
    if found is None:
        return None
    change = None if found.after is None or found.before == 0 else f"{found.after / found.before - 1:+.0%}"
    return {"found": found, "change": change.replace("%", " %").replace("-", "−") if change else None}


# -- curves ---------------------------------------------------------------------------------------------------------


def _reward_curves(run: RunData, axes: Sequence[Axis]) -> dict[str, Markup]:
    """Mean and spread of the training reward, by the key of the axis."""
    mean, std = run.column("reward.mean"), run.column("reward.std")
    if np.count_nonzero(~np.isnan(mean)) < 2:
        return {}
    said = f"Training reward over {len(mean)} iterations, {_ends(mean)}."
    return {
        axis.key: figures.curve(
            run.iterations,
            {"mean": mean},
            axis,
            f"r-{axis.key}",
            said,
            band=std,
            unit="reward of the samples",
            size=(520, 280),
        )
        for axis in axes
    }


def _evaluation_curves(run: RunData, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    views = []
    for index, (label, evaluations) in enumerate(run.evaluations.items()):
        if len(evaluations) > 1:
            said = f"{label} on held-out prompts at {len(evaluations)} evaluations, {_ends_of(evaluations)}."
            drawn = {a.key: figures.evaluation_curve(evaluations, a, f"e{index}-{a.key}", said) for a in axes}
            tasks = any(e.groups for e in evaluations)
            views.append({"label": label, "view": evaluations[-1].view, "tasks": tasks, "svgs": drawn})
    return views


def _reward_panels(run: RunData, axis: Axis) -> list[Panel]:
    """Each reward by itself where there are several."""
    labels = dict.fromkeys(name for m in run.metrics if isinstance(m.get("rewards"), Mapping) for name in m["rewards"])
    if len(labels) < 2:
        return []
    panels = []
    for index, label in enumerate(labels):
        # Labels may contain dots, so columns are read here and not by their dotted key.
        mean, std = (_reward_column(run, label, part) for part in ("mean", "std"))
        if np.count_nonzero(~np.isnan(mean)) > 1:
            said = f"Training reward {label}, {_ends(mean)}."
            svg = figures.curve(run.iterations, {label: mean}, axis, f"p{index}", said, band=std, unit="mean ± std")
            panels.append(Panel(label, "before weighting", svg))
    return panels


def _source_panels(run: RunData, axis: Axis) -> list[Panel]:
    """The reward of each source of prompts, where there are several."""
    panels = []
    found = [m.get("sources") or {} for m in run.metrics]
    for index, name in enumerate(dict.fromkeys(name for one in found for name in one)):
        mean, std = (
            np.array([(one.get(name) or {}).get(part, np.nan) for one in found], dtype=np.float64)
            for part in ("mean", "std")
        )
        if np.count_nonzero(~np.isnan(mean)) > 1:
            said = f"Training reward of source {name}, {_ends(mean)}."
            svg = figures.curve(run.iterations, {name: mean}, axis, f"o{index}", said, band=std, unit="mean ± std")
            panels.append(Panel(f"source {name}", "weighted sum of its rewards", svg))
    return panels


def _part_panels(run: RunData, axis: Axis) -> list[Panel]:
    """What each reward is made of, where it says so."""
    panels = []
    labels = dict.fromkeys(name for m in run.metrics if isinstance(m.get("rewards"), Mapping) for name in m["rewards"])
    for index, label in enumerate(labels):
        found = [((m.get("rewards") or {}).get(label) or {}).get("parts") or {} for m in run.metrics]
        columns = {
            name: np.array([one.get(name, np.nan) for one in found], dtype=np.float64)
            for name in dict.fromkeys(name for one in found for name in one)
        }
        columns = {name: column for name, column in columns.items() if np.count_nonzero(~np.isnan(column)) > 1}
        for place, (name, column) in enumerate(columns.items()):
            svg = figures.curve(
                run.iterations,
                {name: column},
                axis,
                f"q{index}-{place}",
                f"{label}, {name}: {_ends(column)}",
                unit="mean",
            )
            panels.append(Panel(f"{label}: {name}", "part of the reward", svg))
    return panels


def _reward_column(run: RunData, label: str, part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = [((m.get("rewards") or {}).get(label) or {}).get(part) for m in run.metrics]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _wanted(run: RunData) -> list[Diagnostic]:
    """The times if they move, the fixed panels, and what else the objective reported."""
    extra = dict.fromkeys(name for m in run.metrics if isinstance(m.get("extra"), Mapping) for name in m["extra"])
    note = "reported by the objective"
    return [*_times(run), *DIAGNOSTICS, *(Diagnostic(name, note, {name: f"extra.{name}"}, "", None) for name in extra)]


def _times(run: RunData) -> list[Diagnostic]:
    """The range of the training times where an end of it moves, then what else the timestep policy told."""
    ends = {name: f"timesteps.{name}" for name in ("t_min", "t_max")}
    moving = {name: column for name, column in ends.items() if summary.moves(run.column(column))}
    note = "range of σ that the loss is taken in"
    found = [Diagnostic("Training times", note, moving, "σ", None, steps=True)] if moving else []
    told = dict.fromkeys(n for m in run.metrics if isinstance(m.get("timesteps"), Mapping) for n in m["timesteps"])
    return found + [
        Diagnostic(
            name.replace("_", " ").capitalize(),
            f"reported by {run.config.timesteps.use}",
            {name: f"timesteps.{name}"},
            "",
            None,
            steps=True,
        )
        for name in told
        if name not in ends
    ]


def _diagnostic(run: RunData, wanted: Diagnostic, axis: Axis, key: str) -> Panel:
    columns = {name: run.column(column) for name, column in wanted.columns.items()}
    columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    if not columns:
        return Panel(wanted.title, wanted.note, text="not logged")
    values = next(iter(columns.values()))
    known = values[~np.isnan(values)]
    if all(np.count_nonzero(~np.isnan(column)) == 1 for column in columns.values()):
        single = {name: f"{column[~np.isnan(column)][0]:.4g}" for name, column in columns.items()}
        said = ", ".join(f"{name} {value}" if len(single) > 1 else value for name, value in single.items())
        return Panel(wanted.title, wanted.note, text=said)
    if len(columns) == 1 and (known == known[0]).all():
        return Panel(wanted.title, wanted.note, text=f"{known[0]:.4g} throughout")
    said = "; ".join(f"{wanted.title}, {name}: {_ends(column)}" for name, column in columns.items())
    style: dict[str, Any] = {"unit": wanted.unit, "floor": wanted.floor, "whole": wanted.whole, "steps": wanted.steps}
    svg = figures.curve(run.iterations, columns, axis, key, said, **style)
    return Panel(wanted.title, wanted.note, svg)


# -- cost -----------------------------------------------------------------------------------------------------------


def _time_view(run: RunData, axis: Axis) -> dict[str, Any] | None:
    if not run.timings:
        return None
    timed = [t["verbs"] for t in run.timings.values() if isinstance(t.get("verbs"), Mapping)]
    seen = dict.fromkeys(verb for verbs in timed for verb in verbs)
    names = [*(verb for verb in VERBS if verb in seen), *(verb for verb in seen if verb not in VERBS)]
    totals = {name: sum(figures.verb_seconds(run, i, name) for i in run.timings) for name in names}
    whole = sum(spent for name, spent in totals.items() if name != "score")
    rows = []
    for name in names:
        rows.append(
            {
                "title": name.replace("_", " "),
                "swatch": name.replace("_", "-") if name in STACKED else "",
                "total": seconds(totals[name]),
                "share": None if name == "score" or not whole else totals[name] / whole,
                "rate": _rate([verbs[name] for verbs in timed if isinstance(verbs.get(name), Mapping)]),
            }
        )
    peak = max((t["peak_memory_bytes"] for t in run.timings.values() if t.get("peak_memory_bytes")), default=None)
    drawable = any(name in STACKED for name in names)
    said = "Seconds of each iteration by verb; totals: " + ", ".join(f"{row['title']} {row['total']}" for row in rows)
    return {
        "rows": rows,
        "svg": figures.stacked_seconds(run, axis, "t", said) if drawable else None,
        "rewards": _reward_times(run),
        "peak": None if peak is None else f"{peak / 2**30:.2f} GiB",
        "median": seconds(float(np.median([run.seconds_at(i) - run.seconds_at(i - 1) for i in run.timings]))),
    }


def _reward_times(run: RunData) -> list[tuple[str, str, float | None]]:
    """(label, time, samples a second) of each reward over the whole run, where there are several."""
    spent: dict[str, float] = {}
    for timing in run.timings.values():
        for label, value in (timing.get("rewards") or {}).items():
            spent[label] = spent.get(label, 0.0) + value
    if len(spent) < 2:
        return []
    samples = len(run.timings) * run.samples_per_iteration
    return [(label, seconds(total), samples / total if total > 0 else None) for label, total in spent.items()]


def _rate(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Samples a second over all iterations, not the mean of rates."""
    known = [e for e in entries if e.get("samples_per_second") and e.get("seconds")]
    spent = sum(e["seconds"] for e in known)
    return sum(e["seconds"] * e["samples_per_second"] for e in known) / spent if spent else None


# -- provenance -----------------------------------------------------------------------------------------------------


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What run.json says besides versions, as (name, text)."""
    rows = []
    if isinstance(record.get("command"), list):
        rows.append(("command", " ".join(map(str, record["command"]))))
    rows += [(name, str(record[name])) for name in ("python", "platform") if record.get(name)]
    rows += [("settings changed", line) for line in history(record.get("changes"))]
    git = record.get("git")
    if isinstance(git, Mapping):
        rows.append(("git commit", f"{git.get('commit')}{'' if git.get('clean') else ' (with uncommitted changes)'}"))
    elif record:
        rows.append(("git commit", "not run inside a repository"))
    prompts = record.get("prompts")
    for split, found in prompts.items() if isinstance(prompts, Mapping) else ():
        if isinstance(found, Mapping):
            said = ", ".join([f"{found.get('count')}", *counted(found)])
            rows.append((f"{split} prompts", f"{said}, SHA-256 {found.get('sha256')}"))
    return rows


def _texts(mapping: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in mapping.items()} if isinstance(mapping, Mapping) else {}


def _value(score: Score | None) -> str:
    return number(None if score is None else score.value)


def _signed(value: float | None, digits: int) -> str:
    """+0.12 or −0.12."""
    return "" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _ends(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    known = values[~np.isnan(values)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}"


def _ends_of(evaluations: Sequence[Evaluation]) -> str:
    return f"from {evaluations[0].score.value:.3f} to {evaluations[-1].score.value:.3f}"

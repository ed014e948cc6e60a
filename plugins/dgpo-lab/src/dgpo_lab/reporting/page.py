"""The HTML page of a run: collects figures and tables, and renders `page.html.jinja`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dgpo_core.config.changes import history
from dgpo_core.data.notes import counted
from dgpo_core.system.units import number, seconds
from dgpo_lab.reporting import figures, panels, summary
from dgpo_lab.reporting.data import RunData
from dgpo_lab.reporting.figures import STACKED, Axis

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["page_environment", "render"]

PHASES = ("measure", "rollout", "score", "wait_for_scores", "compute_advantages", "optimize", "evaluate", "checkpoint")


def page_environment() -> Environment:
    """Return the Jinja environment of the pages; templates are named by their path in the package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("dgpo_lab", package_path=""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def render(run: RunData) -> str:
    """Render the self-contained HTML page of a run."""
    environment = page_environment()
    environment.filters |= {
        "number": number, "scored": summary.scored, "moment": summary.moment, "signed": summary.signed,
    }  # fmt: skip
    axes = figures.axes_of(run)
    return environment.get_template("reporting/page.html.jinja").render(
        run=run,
        outcome=summary.outcome(run),
        facts=summary.facts(run),
        missing=summary.what_is_missing(run),
        rewards=[_reward_section(run, label, i) for i, label in enumerate(run.evaluations)],
        diversity=_diversity_card(run),
        monitors=summary.monitor_rows(run),
        axes=axes,
        reward_curves=panels.training_reward(run, axes),
        evaluation_curves=_evaluation_curves(run, axes),
        reward_panels=panels.of_rewards(run, axes[0]),
        subscore_panels=panels.of_subscores(run, axes[0]),
        times=summary.times(run),
        diagnostics=panels.diagnostics(run, axes[0]),
        points_each=figures.points_each(len(run.metrics)),
        time=_time_section(run, axes[0]),
        provenance=_provenance(run.record),
        versions=_texts(run.record.get("versions")),
        plugins=_texts(run.record.get("plugins")),
    )


def _reward_section(run: RunData, label: str, index: int) -> dict[str, Any]:
    evaluations = run.evaluations[label]
    first, last = evaluations[0], evaluations[-1]
    rows = summary.task_rows(evaluations)
    every = [score for row in rows for score in (row.before, row.after) if score is not None]
    best = summary.best(evaluations)
    texts = [f"{row.name} {row.before.value:.3f}" for row in rows if row.before]
    if first is not last:
        values = [[number(None if score is None else score.value) for score in (row.before, row.after)] for row in rows]
        texts = [f"{row.name} {before} to {after}" for row, (before, after) in zip(rows, values, strict=True)]
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
        "svg": figures.dumbbell(rows, run.ranges.get(label), f"s{index}", f"Scores of {label}: " + "; ".join(texts)),
    }


def _diversity_card(run: RunData) -> dict[str, Any] | None:
    found = summary.diversity(run)
    if found is None:
        return None
    change = None if found.after is None or found.before == 0 else f"{found.after / found.before - 1:+.0%}"
    return {"found": found, "change": change.replace("%", " %").replace("-", "−") if change else None}


def _evaluation_curves(run: RunData, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    curves = []
    for index, (label, evaluations) in enumerate(run.evaluations.items()):
        if len(evaluations) > 1:
            first, last = evaluations[0].score.value, evaluations[-1].score.value
            text = f"{label} on held-out prompts at {len(evaluations)} evaluations, from {first:.3f} to {last:.3f}."
            svgs = {a.key: figures.evaluation_curve(evaluations, a, f"e{index}-{a.key}", text) for a in axes}
            tasks = any(e.groups for e in evaluations)
            curves.append({"label": label, "model": evaluations[-1].model, "tasks": tasks, "svgs": svgs})
    return curves


def _time_section(run: RunData, axis: Axis) -> dict[str, Any] | None:
    if not run.timings:
        return None
    timed = [phases for phases in run.phases.values() if phases]
    seen = dict.fromkeys(phase for phases in timed for phase in phases)
    names = [*(phase for phase in PHASES if phase in seen), *(phase for phase in seen if phase not in PHASES)]
    totals = {name: sum(run.phase_seconds(i, name) for i in run.timings) for name in names}
    whole = sum(spent for name, spent in totals.items() if name != "score")
    rows = []
    for name in names:
        row: dict[str, Any] = {"title": name.replace("_", " "), "total": seconds(totals[name])}
        row["swatch"] = name.replace("_", "-") if name in STACKED else ""
        row["share"] = None if name == "score" or not whole else totals[name] / whole
        row["rate"] = _rate([phases[name] for phases in timed if name in phases])
        rows.append(row)
    peak = max((t["peak_memory_bytes"] for t in run.timings.values() if t.get("peak_memory_bytes")), default=None)
    drawable = any(name in STACKED for name in names)
    text = "Seconds of each iteration by phase; totals: " + ", ".join(f"{row['title']} {row['total']}" for row in rows)
    return {
        "rows": rows,
        "svg": figures.stacked_seconds(run, axis, "t", text) if drawable else None,
        "rewards": _reward_times(run),
        "peak": None if peak is None else f"{peak / 2**30:.2f} GiB",
        "median": seconds(float(np.median([run.seconds_at(i) - run.seconds_at(i - 1) for i in run.timings]))),
    }


def _reward_times(run: RunData) -> list[tuple[str, str, float | None]]:
    """Return (label, time, samples per second) of each reward over the whole run; empty unless there are several."""
    spent: dict[str, float] = {}
    for timing in run.timings.values():
        for label, value in (timing.get("rewards") or {}).items():
            spent[label] = spent.get(label, 0.0) + value
    if len(spent) < 2:
        return []
    samples = len(run.timings) * run.samples_per_iteration
    return [(label, seconds(total), samples / total if total > 0 else None) for label, total in spent.items()]


def _rate(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return samples per second over all iterations (not the mean of the rates)."""
    known = [e for e in entries if e.get("samples_per_second") and e.get("seconds")]
    spent = sum(e["seconds"] for e in known)
    return sum(e["seconds"] * e["samples_per_second"] for e in known) / spent if spent else None


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the entries of run.json other than versions as (name, text)."""
    rows = []
    if isinstance(record.get("command"), list):
        rows.append(("command", " ".join(map(str, record["command"]))))
    rows += [(name, str(record[name])) for name in ("python", "platform") if record.get(name)]
    rows += [("settings changed", line) for line in history(record.get("changes"))]
    git = record.get("git")
    if isinstance(git, Mapping):
        rows.append(("git commit", f"{git.get('commit')}{'' if git.get('clean') else ' (with uncommitted changes)'}"))
    elif record:
        rows.append(("git commit", "not inside a git repository"))
    prompts = record.get("prompts")
    for split, entry in prompts.items() if isinstance(prompts, Mapping) else ():
        if isinstance(entry, Mapping):
            counts = ", ".join([f"{entry.get('count')}", *counted(entry)])
            rows.append((f"{split} prompts", f"{counts}, SHA-256 {entry.get('sha256')}"))
    return rows


def _texts(mapping: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in mapping.items()} if isinstance(mapping, Mapping) else {}

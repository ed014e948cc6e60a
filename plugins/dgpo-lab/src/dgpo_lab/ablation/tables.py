"""Format results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics as plain
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dgpo_lab.ablation import words
from dgpo_lab.ablation.plan import Plan
from dgpo_lab.ablation.results import Results, VariantResult
from dgpo_lab.ablation.statistics import Interval
from dgpo_lab.ablation.traces import Trace

__all__ = ["as_csv", "as_json", "as_markdown", "cells_csv"]


def as_markdown(plan: Plan, results: Results) -> str:
    """Format results as a Markdown page."""
    lines = [f"# {plan.ablation.name}", "", words.headline(results), ""]
    lines += _table(*rows(results))
    if results.base_model is not None:
        lines += ["", f"The base model scores {words.interval(results.base_model)} (t interval over seeds)."]
    monitors = monitor_names(results)
    if monitors:
        header = ["variant", *(f"{name.replace('_', ' ')} (change)" for name in monitors), "out of tolerance"]
        lines += [
            "",
            "## Monitors",
            "",
            *_table(header, [monitor_row(variant, monitors) for variant in results.variants]),
        ]
        lines += [
            "",
            "Means over seeds of unrewarded metrics on the same held-out samples, and of their change.",
        ]
    lines += ["", "## How to read this", "", *(f"- {line}" for line in words.how_to_read(plan, results))]
    warned = words.warnings(plan, results)
    if warned:
        lines += ["", "## Limitations of the comparison", "", *(f"- {line}" for line in warned)]
    return "\n".join(lines) + "\n"


def monitor_names(results: Results) -> list[str]:
    """Return the monitors of all variants."""
    return list(dict.fromkeys(name for variant in results.variants for name in variant.monitors))


def monitor_row(variant: VariantResult, names: Sequence[str]) -> list[str]:
    """Return the table row of a variant: each monitor as 0.231 (−0.010), and the seeds with one out of tolerance."""
    found = [variant.monitors.get(name) for name in names]
    shown = ["–" if g is None else f"{g.last:.3f} ({g.change:+.3f})".replace("-", "−") for g in found]
    left = sum(any(monitor.out_of_tolerance for monitor in trace.monitors.values()) for trace in variant.finished)
    return [variant.name, *shown, f"{left} of {len(variant.finished)}" if variant.finished else "–"]


def rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the main table, one row per variant."""
    axes = words.columns(results)
    axes = axes if len(axes) > 1 else []
    header = ["variant", *axes, "seeds", results.reward, f"difference to {results.baseline}", "p", "p (Holm)"]
    if results.target is not None:
        header += [f"time to {results.target:g}", f"samples to {results.target:g}"]
    return header, [_row(results, variant, axes) for variant in results.variants]


def _row(results: Results, variant: VariantResult, axes: Sequence[str]) -> list[str]:
    found = [variant.name, *(variant.axes.get(axis, "") for axis in axes)]
    found += [words.seeds_of(variant), words.interval(variant.score)]
    if (difference := variant.difference) is None:
        found += ["baseline" if variant.name == results.baseline else "–", "", ""]
    else:
        found += [words.signed(difference.over_seeds), *map(words.p_value, (difference.test.p, difference.corrected))]
    return found + ([variant.reached.text(what) for what in ("seconds", "samples")] if variant.reached else [])


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, body)]


# -- data -----------------------------------------------------------------------------------------------------------


def as_csv(results: Results) -> str:
    """Format one line per variant; cells without a value (such as a target that not every seed reached) are empty."""
    monitors = monitor_names(results)
    others = list(dict.fromkeys(name for variant in results.variants for name in variant.others))
    found = []
    for variant in results.variants:
        score, difference, reached = variant.score, variant.difference, variant.reached
        whole = reached if reached is not None and reached.complete else None
        test = difference.test if difference else None
        line: dict[str, Any] = {"variant": variant.name}
        line |= {f"axis.{axis}": variant.axes.get(axis) for axis in words.columns(results)}
        line |= {"seeds": len(variant.traces), "finished": len(variant.finished)}
        line |= _interval("score", score) | {"score_interval_over": score.over if score else None}
        line |= _interval("difference", difference.over_seeds if difference else None)
        line |= _interval("difference_with_prompts", difference.over_both if difference else None)
        line |= {"paired_seeds": test.n if test else None, "p": test.p if test else None}
        line |= {"p_holm": difference.corrected if difference else None, "p_smallest": test.smallest if test else None}
        line |= {"reached": None if reached is None else len(reached.seconds)}
        for what in ("seconds", "samples"):
            line[f"median_{what}_to_target"] = plain.median(getattr(whole, what)) if whole else None
        line |= {f"reward.{name}": variant.others.get(name) for name in others}
        for name, monitor in ((name, variant.monitors.get(name)) for name in monitors):
            line[f"monitor.{name}"] = monitor.last if monitor else None
            line[f"monitor.{name}.change"] = monitor.change if monitor else None
        found.append(line)
    return _csv(found)


def _interval(name: str, found: Interval | None) -> dict[str, float | None]:
    return {f"{name}{end and f'_{end}'}": getattr(found, end or "value", None) for end in ("", "low", "high")}


def cells_csv(results: Results) -> str:
    """Format one line per cell."""
    found = []
    for trace in results.traces:
        place = None if results.target is None or not trace.finished else trace.reached(results.target)
        line: dict[str, Any] = {"variant": trace.variant, "seed": trace.seed, "status": trace.state.status}
        line["ended_by"] = trace.ended_by
        for name in ("iterations", "samples", "seconds"):
            line[name] = getattr(trace, name)[-1] if trace.iterations else None
        line["score"] = trace.score if trace.scores else None
        for name in ("seconds", "samples"):
            line[f"{name}_to_target"] = None if place is None else getattr(trace, name)[place]
        found.append(line)
    return _csv(found)


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def as_json(plan: Plan, results: Results) -> str:
    """Format all results as JSON, including the curve of every cell."""
    data = {
        "ablation": plan.ablation.name,
        "reward": results.reward,
        "baseline": results.baseline,
        "target": results.target,
        "headline": words.headline(results),
        "how_to_read": words.how_to_read(plan, results),
        "warnings": words.warnings(plan, results),
        "base_model": asdict(results.base_model) if results.base_model else None,
        "paired": results.paired,
        "variants": [_variant(variant) for variant in results.variants],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _variant(variant: VariantResult) -> dict[str, Any]:
    reached = variant.reached
    return {
        "name": variant.name,
        "axes": dict(variant.axes),
        "score": asdict(variant.score) if variant.score else None,
        "difference": asdict(variant.difference) if variant.difference else None,
        "reached": None if reached is None else asdict(reached) | {"of": reached.n, "complete": reached.complete},
        "monitors": {name: asdict(monitor) for name, monitor in variant.monitors.items()},
        "other_rewards": dict(variant.others),
        "cells": [_cell(trace) for trace in variant.traces],
    }


def _cell(trace: Trace) -> dict[str, Any]:
    found = {"seed": trace.seed, "status": trace.state.status, "message": trace.state.message}
    curves = {name: list(getattr(trace, name)) for name in ("iterations", "samples", "seconds", "scores")}
    return found | {"ended_by": trace.ended_by} | curves

"""Results as markdown, CSV and JSON."""

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
from dgpo_lab.ablation.results import Reached, Results, VariantResult
from dgpo_lab.ablation.statistics import Interval
from dgpo_lab.ablation.traces import Trace

__all__ = ["as_csv", "as_json", "as_markdown", "cells_csv"]


def as_markdown(plan: Plan, results: Results) -> str:
    """A page that reads well as plain text too."""
    lines = [f"# {plan.ablation.name}", "", words.headline(results), ""]
    lines += _table(_header(results), [_row(results, variant) for variant in results.variants])
    if results.base_model is not None:
        lines += ["", f"The base model scores {words.interval(results.base_model)} (t interval over seeds)."]
    guards = guard_names(results)
    if guards:
        header = ["variant", *(f"{name.replace('_', ' ')} (change)" for name in guards), "left a band"]
        lines += ["", "## Guards", "", *_table(header, [guard_row(variant, guards) for variant in results.variants])]
        lines += ["", "Means over seeds of what is not rewarded, on the same held-out samples, and of its change."]
    lines += ["", "## How to read this", "", *(f"- {line}" for line in words.how_to_read(plan, results))]
    warned = words.warnings(plan, results)
    if warned:
        lines += ["", "## What weakens the comparison", "", *(f"- {line}" for line in warned)]
    return "\n".join(lines) + "\n"


def guard_names(results: Results) -> list[str]:
    """Guards that any variant has."""
    return list(dict.fromkeys(name for variant in results.variants for name in variant.guards))


def guard_row(variant: VariantResult, names: Sequence[str]) -> list[str]:
    """A variant's guards: 0.231 (−0.010), and how often one left its band."""
    found = [variant.guards.get(name) for name in names]
    shown = ["–" if g is None else f"{g.last:.3f} ({g.change:+.3f})".replace("-", "−") for g in found]
    left = sum(any(guard.left_band for guard in trace.guards.values()) for trace in variant.finished)
    return [variant.name, *shown, f"{left} of {len(variant.finished)}" if variant.finished else "–"]


def _header(results: Results) -> list[str]:
    axes = words.columns(results)
    several = axes if len(axes) > 1 else []
    found = ["variant", *several, "seeds", results.reward, f"difference to {results.baseline}", "p", "p (Holm)"]
    if results.target is not None:
        found += [f"time to {results.target:g}", f"samples to {results.target:g}"]
    return found


def _row(results: Results, variant: VariantResult) -> list[str]:
    axes = words.columns(results)
    difference = variant.difference
    found = [variant.name, *([variant.axes.get(axis, "") for axis in axes] if len(axes) > 1 else [])]
    found += [words.seeds_of(variant), words.interval(variant.score)]
    if difference is None:
        found += ["baseline" if variant.name == results.baseline else "–", "", ""]
    else:
        found += [
            words.signed(difference.over_seeds), words.p_value(difference.test.p), words.p_value(difference.corrected)
        ]  # fmt: skip
    if results.target is not None:
        assert variant.reached is not None
        found += [variant.reached.text("seconds"), variant.reached.text("samples")]
    return found


def rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """The main table: its header and a row a variant."""
    return _header(results), [_row(results, variant) for variant in results.variants]


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, body)]


# -- data -----------------------------------------------------------------------------------------------------------


def as_csv(results: Results) -> str:
    """One line a variant, plain numbers; empty where there is none (a target that was not reached by every seed)."""
    axes, guards = words.columns(results), guard_names(results)
    others = list(dict.fromkeys(name for variant in results.variants for name in variant.others))
    found = []
    for variant in results.variants:
        score, difference, reached = variant.score, variant.difference, variant.reached
        line: dict[str, Any] = {"variant": variant.name}
        line |= {f"axis.{axis}": variant.axes.get(axis, "") for axis in axes}
        line |= {"seeds": len(variant.traces), "finished": len(variant.finished)}
        line |= _interval("score", score) | {"score_interval_over": score.over if score else ""}
        line |= _interval("difference", difference.over_seeds if difference else None)
        line |= _interval("difference_with_prompts", difference.over_both if difference else None)
        line |= {
            "paired_seeds": difference.test.n if difference else "",
            "p": difference.test.p if difference else "",
            "p_holm": difference.corrected if difference else "",
            "p_smallest": difference.test.smallest if difference else "",
        }
        line |= _reached(reached)
        line |= {f"reward.{name}": variant.others.get(name, "") for name in others}
        for name in guards:
            guard = variant.guards.get(name)
            line |= {
                f"guard.{name}": guard.last if guard else "",
                f"guard.{name}.change": guard.change if guard else "",
            }
        found.append(line)
    return _csv(found)


def _interval(name: str, found: Interval | None) -> dict[str, Any]:
    parts = (None, None, None) if found is None else (found.value, found.low, found.high)
    return {
        key: "" if value is None else value
        for key, value in zip((name, f"{name}_low", f"{name}_high"), parts, strict=True)
    }


def _reached(found: Reached | None) -> dict[str, Any]:
    whole = found is not None and found.complete
    return {
        "reached": "" if found is None else len(found.seconds),
        "median_seconds_to_target": plain.median(found.seconds) if found and whole else "",
        "median_samples_to_target": plain.median(found.samples) if found and whole else "",
    }


def cells_csv(results: Results) -> str:
    """One line a cell."""
    found = []
    for trace in results.traces:
        place = None if results.target is None or not trace.finished else trace.reached(results.target)
        found.append(
            {
                "variant": trace.variant,
                "seed": trace.seed,
                "status": trace.state.status,
                "ended_by": trace.ended_by or "",
                "iterations": trace.iterations[-1] if trace.iterations else "",
                "samples": trace.samples[-1] if trace.iterations else "",
                "seconds": trace.seconds[-1] if trace.iterations else "",
                "score": trace.score if trace.scores else "",
                "seconds_to_target": "" if place is None else trace.seconds[place],
                "samples_to_target": "" if place is None else trace.samples[place],
            }
        )
    return _csv(found)


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def as_json(plan: Plan, results: Results) -> str:
    """Everything, with every cell's curve."""
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
        "guards": {name: asdict(guard) for name, guard in variant.guards.items()},
        "other_rewards": dict(variant.others),
        "cells": [_cell(trace) for trace in variant.traces],
    }


def _cell(trace: Trace) -> dict[str, Any]:
    return {
        "seed": trace.seed,
        "status": trace.state.status,
        "message": trace.state.message,
        "ended_by": trace.ended_by,
        "iterations": list(trace.iterations),
        "samples": list(trace.samples),
        "seconds": list(trace.seconds),
        "scores": list(trace.scores),
    }

"""An ablation's page: one self-contained HTML file in the style of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dgpo_core.system.units import seconds
from dgpo_lab.ablation import figures, tables, words
from dgpo_lab.ablation.plan import Cell, Plan
from dgpo_lab.ablation.results import Results
from dgpo_lab.reporting.images import RunImage, read_images
from dgpo_lab.reporting.page import page_environment
from dgpo_schemas.yaml_text import dump_yaml

__all__ = ["render"]

PROMPTS = 8
"""Rows of the sample grid."""


def render(plan: Plan, results: Results) -> str:
    """Render the self-contained HTML page of an ablation."""
    header, body = tables.rows(results)
    monitors = tables.monitor_names(results)
    panels = _panels(results)
    return page_environment().get_template("ablation/ablation.html.jinja").render(
        plan=plan,
        results=results,
        headline=words.headline(results),
        facts=_facts(results),
        warnings=words.warnings(plan, results),
        reading=words.how_to_read(plan, results),
        base_model=words.interval(results.base_model) if results.base_model else None,
        header=header,
        body=body,
        monitors=[name.replace("_", " ") for name in monitors],
        monitor_rows=[tables.monitor_row(variant, monitors) for variant in results.variants],
        ranking=figures.ranking(results),
        axes={"iterations": "iterations", "samples": "samples", "time": "time"} if panels else {},
        panels=panels,
        samples=_samples(plan, results),
        variants=[(variant.name, _settings(plan, variant.config)) for variant in plan.variants],
        ablation_text=dump_yaml(plan.ablation.model_dump(mode="json", exclude_none=True)),
    )  # fmt: skip


def _facts(results: Results) -> list[tuple[str, str, str]]:
    """(label, value, note) for the strip below the sentence."""
    finished = [trace for trace in results.traces if trace.finished]
    found = [
        ("variants", str(len(results.variants)), f"against {results.baseline}"),
        ("cells", f"{len(finished)} of {len(results.traces)}", "finished"),
    ]
    if finished:
        found.append(("training time", seconds(sum(trace.seconds[-1] for trace in finished)), "of all cells together"))
        found.append(("training samples", f"{sum(trace.samples[-1] for trace in finished):,.0f}", "of all cells"))
    return found


def _panels(results: Results) -> list[dict[str, Any]]:
    """Curves of each variant against the baseline's, by axis."""
    if not any(trace.finished for trace in results.traces):
        return []
    limits = figures.shared_limits(results)
    baseline = next(variant for variant in results.variants if variant.name == results.baseline)
    shown = [variant for variant in results.variants if variant is not baseline] or [baseline]
    found = []
    for index, variant in enumerate(shown):
        drawn = {
            axis: figures.panel(variant, baseline, axis, limits, results.target, f"c{index}-{axis}")
            for axis in figures.AXES
        }
        if all(drawn.values()):
            found.append({"title": variant.name, "svgs": drawn})
    return found


def _samples(plan: Plan, results: Results) -> dict[str, Any] | None:
    """Images of the last evaluation, one column a variant: all of one seed, so of the same prompts and noise."""
    finished = {(trace.variant, trace.seed) for trace in results.traces if trace.finished}
    counts = {seed: sum(s == seed for _, s in finished) for seed in plan.ablation.seeds}
    seed = max(counts, key=lambda one: counts[one])
    cells = [cell for cell in plan.cells() if cell.seed == seed and (cell.variant, seed) in finished]
    columns: list[tuple[str, Mapping[str, RunImage]]] = []
    for cell in cells:
        before, after = _images(cell)
        if not columns and before:
            columns.append(("base model", before))
        if after:
            columns.append((cell.variant, after))
    prompts: Sequence[str] = [p for p in columns[0][1] if all(p in found for _, found in columns)] if columns else []
    if not prompts or len(columns) < 2:
        return None
    rows = [{"prompt": p, "images": [found[p] for _, found in columns]} for p in prompts[:PROMPTS]]
    return {"seed": seed, "columns": [name for name, _ in columns], "rows": rows}


def _images(cell: Cell) -> tuple[dict[str, RunImage], dict[str, RunImage]]:
    """Of the base model and of the last evaluation, by prompt."""
    found = read_images(cell.path / "images", [])
    before = {pair.prompt: pair.before for pair in found.pairs} if found.first == 0 else {}
    after = {pair.prompt: pair.after for pair in found.pairs if pair.after is not None}
    return before, after


def _settings(plan: Plan, config: Any) -> str:
    """What a variant's run file says otherwise than the baseline's."""
    from dgpo_core.config.changes import differing_keys

    base = next(variant.config for variant in plan.variants if variant.name == plan.baseline)
    found = differing_keys(base, config, ("fixed", "from there on"))
    lines = [line.replace(" when it started, ", " in the baseline, ") for line in found]
    return "\n".join(line.removesuffix(" now") for line in lines)

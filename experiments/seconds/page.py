"""Write the page and the figure of the scores at equal seconds from their record."""

from __future__ import annotations

import statistics
from pathlib import Path

from dgpo_lab.ablation import words
from experiments.catalog import SECONDS
from experiments.rendering import write
from experiments.seconds.record import Record, Row, load

__all__ = ["TITLE", "headline", "write_page"]

TITLE = "Savings at equal seconds"


def write_page(directory: Path) -> Path:
    """Write seconds.md and its figure next to the directory `seconds`, which contains the record."""
    from experiments.figures import draw

    record = load(directory / SECONDS / "record.json")
    draw(record.results, ("seconds",), directory / SECONDS / "scores.png")
    kinds = {kind: [row for row in record.rows if row.variant.kind == kind] for kind in ("exact", "approximate")}
    return write(
        directory / f"{SECONDS}.md", record=record, kinds=kinds, baseline=record.rows[0], unequal=_unequal(record),
        verdicts=[verdict(row) for row in record.rows[1:]],
        seeds=len({trace.seed for trace in record.results.traces}), rounds=record.rows[0].ratio.n,
    )  # fmt: skip


def _unequal(record: Record) -> list[str]:
    """Return the exact variants whose weights were not the baseline's, of which there must be none."""
    return [row.variant.name for row in record.rows if row.variant.kind == "exact" and not row.equal]


def verdict(row: Row) -> str:
    """Return a sentence on a variant's score at equal seconds; "more" only where the interval excludes 0."""
    difference = row.result.difference
    if difference is None:
        return f"`{row.variant.name}` has no seed in common with the baseline."
    found = difference.over_seeds
    p, corrected = (words.p_value(value) for value in (difference.test.p, difference.corrected))
    signed = f"{words.signed(found)} (p = {p}, {corrected} after Holm's correction)"
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return f"`{row.variant.name}` and the baseline cannot be told apart: {signed}."
    return f"`{row.variant.name}` scores {'more' if found.low > 0 else 'less'} than the baseline: {signed}."


def headline(directory: Path) -> str:
    """Return one sentence for the index of experiments."""
    record = load(directory / SECONDS / "record.json")
    cheapest = min(record.rows, key=lambda row: row.ratio.value)
    median = statistics.median(trace.score for trace in record.rows[0].result.finished)
    return (
        f"{cheapest.variant.name} takes {cheapest.ratio.value:.2f} of the baseline's CPU seconds per iteration. "
        f"{verdict(cheapest)} The baseline's median is {median:.3f}."
    )

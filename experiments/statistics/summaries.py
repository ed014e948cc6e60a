"""What seeds of variants are compared by: the score or the area under the curve, at equal samples or equal seconds.

Seconds are counted at one price an iteration for each variant, the median over its cells: cells of an ablation share
the machine, and the pauses of a cell are no property of its variant.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Literal

from dgpo_lab.ablation.results import Results
from dgpo_lab.ablation.traces import Trace
from experiments.statistics.curves import Crossing, area, crossing, score_at

__all__ = ["Budget", "Summary", "crossings", "horizon", "iteration_seconds", "last_scores", "summaries"]

Budget = Literal["samples", "seconds"]
Summary = Literal["score", "area"]
Values = dict[str, dict[int, float]]


def last_scores(results: Results) -> Values:
    """Return the last score of every finished cell, by variant and seed."""
    return {variant.name: {t.seed: t.score for t in variant.finished} for variant in results.variants}


def iteration_seconds(results: Results) -> dict[str, float]:
    """Return the seconds of an iteration by variant: the median over its finished cells; variants without one are left
    out."""
    return {
        variant.name: plain.median(t.seconds[-1] / t.iterations[-1] for t in variant.finished)
        for variant in results.variants
        if variant.finished
    }


def horizon(results: Results, budget: Budget) -> float:
    """Return the largest budget that every finished cell has used up."""
    prices = iteration_seconds(results)
    return min(_places(t, budget, prices)[-1] for v in results.variants for t in v.finished)


def summaries(results: Results, budget: Budget, summary: Summary) -> Values:
    """Return every finished cell's score at the `horizon` of a budget, or the area under its curve until then, divided
    by the budget; by variant and seed."""
    prices, until = iteration_seconds(results), horizon(results, budget)
    read = score_at if summary == "score" else area
    return {
        variant.name: {t.seed: read(_places(t, budget, prices), t.scores, until) for t in variant.finished}
        for variant in results.variants
    }


def crossings(results: Results, target: float, budget: Budget, in_a_row: int) -> dict[str, dict[int, Crossing]]:
    """Return where every finished cell reached a target, by variant and seed: the first of `in_a_row` evaluations in a
    row at or above it."""
    prices = iteration_seconds(results)
    return {
        variant.name: {
            t.seed: crossing(_places(t, budget, prices), t.scores, target, min(in_a_row, len(t.scores)))
            for t in variant.finished
        }
        for variant in results.variants
    }


def _places(trace: Trace, budget: Budget, prices: Mapping[str, float]) -> Sequence[float]:
    """Return the budget used until each evaluation of a cell."""
    if budget == "samples":
        return trace.samples
    return [prices[trace.variant] * iteration for iteration in trace.iterations]

"""Summaries of one learning curve: its score at a place, the area under it, and where it crosses a target.

A curve is a sequence of places (samples or seconds of training, increasing) and the held-out score at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Crossing", "area", "crossing", "score_at"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a curve reached its target. If `censored`, it did not do so before `place`, which is then a lower bound."""

    place: float
    censored: bool


def score_at(places: Sequence[float], scores: Sequence[float], place: float) -> float:
    """Return the score at a place, on the line between the evaluations around it.

    Raises ValueError outside of the curve: a curve is never continued beyond its last evaluation.
    """
    _check(places, scores)
    if not places[0] <= place <= places[-1]:
        raise ValueError(f"the curve covers {places[0]:g} to {places[-1]:g}, not {place:g}")
    return float(np.interp(place, places, scores))


def area(places: Sequence[float], scores: Sequence[float], until: float) -> float:
    """Return the area under a curve up to a place, divided by its width: the mean score over the budget.

    The curve is linear between evaluations (trapezoidal rule). Raises ValueError if it ends before `until`.
    """
    end = score_at(places, scores, until)
    if until == places[0]:
        return end
    kept = [(x, y) for x, y in zip(places, scores, strict=True) if x < until]
    xs, ys = [x for x, _ in kept] + [until], [y for _, y in kept] + [end]
    return float(np.trapezoid(ys, xs)) / (until - places[0])


def crossing(places: Sequence[float], scores: Sequence[float], target: float, in_a_row: int = 1) -> Crossing:
    """Return where a curve reaches a target: the first of `in_a_row` evaluations in a row at or above it.

    Several in a row keep a single lucky evaluation from ending the clock. If the curve ends before that many are seen,
    the crossing is censored at the first of the unbroken run at its end, or else at its last evaluation.
    """
    _check(places, scores)
    above = [score >= target for score in scores]
    for first in range(len(above) - in_a_row + 1):
        if all(above[first : first + in_a_row]):
            return Crossing(places[first], censored=False)
    first = len(above)
    while first > 0 and above[first - 1]:
        first -= 1
    return Crossing(places[min(first, len(above) - 1)], censored=True)


def _check(places: Sequence[float], scores: Sequence[float]) -> None:
    if len(places) != len(scores) or not len(places):
        raise ValueError(f"a curve has one score for each place, got {len(scores)} for {len(places)}")
    if any(b <= a for a, b in pairwise(places)):
        raise ValueError("the places of a curve must increase")

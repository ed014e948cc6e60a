"""Times to a target over seeds, some of which never reach it: medians, and ratios paired by seed.

A seed that does not reach the target is right-censored: its time is only known to exceed what it spent. Leaving such
seeds out would favour the slower method, whose slowest seeds are the ones that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.statistics.curves import Crossing

__all__ = ["TimeRatio", "median_time", "order_of_interval", "ratio"]


def median_time(crossings: Sequence[Crossing]) -> float | None:
    """Return the Kaplan-Meier median of the times (Kaplan and Meier 1958), None if it lies beyond all times seen.

    The estimate of P(T > t) is the product over times u <= t of 1 - (events at u) / (seeds still running at u); the
    median is the first time at which it is at most 1/2. Raises ValueError for an empty sequence.
    """
    if not crossings:
        raise ValueError("there is no seed")
    from scipy.stats import CensoredData, ecdf

    if all(one.censored for one in crossings):
        return None
    reached = [one.place for one in crossings if not one.censored]
    beyond = [one.place for one in crossings if one.censored]
    survival = ecdf(CensoredData(uncensored=reached, right=beyond)).sf
    within = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)
    return float(survival.quantiles[within[0]]) if len(within) else None


@dataclass(frozen=True, slots=True)
class TimeRatio:
    """How many times as much one method takes to the target as another, paired by seed.

    median: of the ratios of n seeds, between two bounds, which are equal if censoring leaves it known; interval: of
    the median of all seeds; bounded: seeds of which only bounds are known. Bounds are 0 and infinite if nothing bounds
    them.
    """

    median: tuple[float, float]
    interval: tuple[float, float]
    n: int
    bounded: int

    def text(self) -> str:
        """Format it: `3.1 times [2.2, 4.4]`, `more than 2.0 times (95 %: more than 1.2)`, or `nothing can be said`."""
        within = _span(*self.interval)
        if self.median[0] == self.median[1]:
            return f"{self.median[0]:.1f} times [{within}]" if within else f"{self.median[0]:.1f} times (no interval)"
        found = _span(*self.median)
        if not found:
            return "nothing can be said"
        return f"{found} times (95 %: {within})" if within else f"{found} times (no interval)"


def _span(low: float, high: float) -> str:
    if low > 0 and high < math.inf:
        return f"{low:.1f}, {high:.1f}"
    return f"more than {low:.1f}" if low > 0 else f"less than {high:.1f}" if high < math.inf else ""


def ratio(times: Sequence[Crossing], against: Sequence[Crossing], level: float = 0.95) -> TimeRatio:
    """Return the ratio of `times` to those `against` them, seed by seed, with an interval of its median.

    If a seed is censored, its ratio is only bounded: from below if `times` is, from above if `against` is, not at all
    if both are. The interval is that of the sign test: between the k-th smallest and the k-th largest ratio, for the
    largest k with 2 P(Binomial(n, 1/2) < k) <= 1 - level (Conover 1999, 3.2). It assumes no distribution. Order
    statistics are monotone, so that lower bounds in place of the ratios bound the lower end, and upper bounds the upper
    end: coverage is at least `level` under any censoring. Fewer than six seeds give no interval at 95 %.

    Raises ValueError unless both have the same number of seeds, at least one, with positive times.
    """
    n = len(times)
    if n != len(against) or not n:
        raise ValueError(f"ratios are paired by seed, got {n} and {len(against)} times")
    if any(one.place <= 0 for one in (*times, *against)):
        raise ValueError("a time to the target must be positive: the base model is at the target already")
    pairs = list(zip(times, against, strict=True))
    lows = sorted(0.0 if other.censored else one.place / other.place for one, other in pairs)
    highs = sorted(math.inf if one.censored else one.place / other.place for one, other in pairs)
    k = order_of_interval(n, level)
    interval = (lows[k - 1], highs[n - k]) if k else (0.0, math.inf)
    return TimeRatio((_middle(lows), _middle(highs)), interval, n, sum(a.censored or b.censored for a, b in pairs))


def order_of_interval(n: int, level: float) -> int:
    """Return the largest k for which the k-th smallest and k-th largest of n values enclose the median with
    probability >= level; 0 if there is none."""
    outside, k = 0.0, 0
    while k < n // 2 and outside + 2 * math.comb(n, k) / 2**n <= 1 - level:
        outside += 2 * math.comb(n, k) / 2**n
        k += 1
    return k


def _middle(ordered: Sequence[float]) -> float:
    """Return the median of ordered ratios; of an even number the geometric mean of the middle two."""
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else math.sqrt(low * high)

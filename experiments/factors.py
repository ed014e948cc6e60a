"""By which factor variants take longer to a target than others, the verdict on a claimed factor, and its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

from dgpo_core.system.units import seconds
from dgpo_lab.ablation.results import Results
from experiments.statistics.curves import Crossing
from experiments.statistics.summaries import Budget, crossings, iteration_seconds
from experiments.statistics.targets import TimeRatio, median_time, ratio

__all__ = ["BOUND", "CLAIMED", "IN_A_ROW", "Factors", "Link", "Verdict", "verdict"]

IN_A_ROW = 3
"""Evaluations in a row at or above the target, of which the first is the time to it."""
CLAIMED = 10.0
"""A factor of at least this much supports the published one of about 20; one that is smaller refutes it."""
BOUND = 5.0
"""The lower bound above which a factor that supports it must lie."""
Verdict = Literal["supported", "refuted", "open"]


def verdict(found: TimeRatio | None) -> Verdict:
    """Return whether a factor supports the published one: the median is at least `CLAIMED` and its interval lies above
    `BOUND`; refutes it: the interval lies below `CLAIMED`; or leaves it open. Of a median that is only known to lie
    between bounds, the lower one counts."""
    if found is None:
        return "open"
    low, high = found.interval
    if found.median[0] >= CLAIMED and low > BOUND:
        return "supported"
    return "refuted" if high < CLAIMED else "open"


@dataclass(frozen=True, slots=True)
class Link:
    """What one change gives: the factor of a variant to the one before it, in samples and in seconds, and the ratio of
    the prices of their iterations."""

    name: str
    against: str
    what: str
    samples: TimeRatio | None
    seconds: TimeRatio | None
    price: float | None


class Factors:
    """Times to targets, in samples and in seconds: one price an iteration for each variant."""

    def __init__(self, results: Results, targets: Sequence[float], passes: Mapping[str, float]) -> None:
        self.results = results
        self.targets = list(targets)
        self.passes = passes
        self.prices = iteration_seconds(results)
        self.crossings = cache(self._crossings)

    @property
    def middle(self) -> float:
        """The target that verdicts and parts are about."""
        return self.targets[len(self.targets) // 2]

    def _crossings(self, target: float, budget: Budget) -> dict[str, dict[int, Crossing]]:
        return crossings(self.results, target, budget, IN_A_ROW)

    def has(self, name: str) -> bool:
        """Whether there is such a variant: an untuned one is left out where the search chose its settings."""
        return any(variant.name == name for variant in self.results.variants)

    def factor(self, name: str, target: float, budget: Budget, against: str | None = None) -> TimeRatio | None:
        """Return how many times as much a variant takes as another, or as the baseline; None without a common seed."""
        found = self.crossings(target, budget)
        own, base = (found.get(one, {}) for one in (name, against or self.results.baseline))
        common = [seed for seed in sorted(own.keys() & base.keys()) if own[seed].place > 0 and base[seed].place > 0]
        return ratio([own[s] for s in common], [base[s] for s in common]) if common else None

    def text(self, name: str, target: float, budget: Budget, against: str | None = None) -> str:
        """Format a factor."""
        found = self.factor(name, target, budget, against)
        return "–" if found is None else found.text()

    def verdict(self, name: str, target: float, budget: Budget) -> Verdict:
        """Return the verdict on the published factor, with a variant in the place of Flow-GRPO."""
        return verdict(self.factor(name, target, budget))

    def median(self, name: str, target: float, budget: Budget) -> str:
        """Format the Kaplan-Meier median of the time to a target."""
        found = list(self.crossings(target, budget)[name].values())
        if not found:
            return "–"
        shown = seconds if budget == "seconds" else "{:,.0f}".format
        value = median_time(found)
        return shown(value) if value is not None else f"more than {shown(max(one.place for one in found))}"

    def reached(self, name: str, target: float) -> str:
        """Format how many seeds reached a target."""
        found = self.crossings(target, "samples")[name].values()
        return f"{sum(not one.censored for one in found)} of {len(found)}"

    def room(self, name: str) -> str:
        """Format how many times the baseline's median samples to the middle target a variant took in the seeds that did
        not reach the last target: the largest factor that it can show; – if all did."""
        median = median_time(list(self.crossings(self.middle, "samples")[self.results.baseline].values()))
        traces = [trace for trace in self.results.traces if trace.variant == name and trace.finished]
        spent = [trace.samples[-1] for trace in traces if trace.ended_by != "target"]
        return f"{min(spent) / median:.0f}" if median and spent else "–"

    def every(self, name: str) -> str:
        """Format the iterations between a variant's evaluations."""
        found = next((t.iterations for t in self.results.traces if t.variant == name and len(t.iterations) > 1), None)
        return "–" if found is None else str(found[1] - found[0])

    def price(self, name: str) -> str:
        """Format the seconds of an iteration in ratio to the baseline's."""
        own, base = self.prices.get(name), self.prices.get(self.results.baseline)
        return "–" if own is None or base is None else f"{own / base:.2f}"

    def links(self, chain: Sequence[tuple[str, str]]) -> list[Link]:
        """Return what each step of a chain of variants gives, at the middle target. chain: variants, each with what
        changes from the one before it; variants that are not there are left out."""
        there = [(name, what) for name, what in chain if self.has(name)]
        found = []
        for (against, _), (name, what) in pairwise(there):
            samples, spent = (self.factor(name, self.middle, budget, against) for budget in ("samples", "seconds"))
            prices = self.prices.get(name), self.prices.get(against)
            price = prices[0] / prices[1] if prices[0] and prices[1] else None
            found.append(Link(name, against, what, samples, spent, price))
        return found

    def share(self, link: Link, name: str, budget: Budget = "samples") -> str:
        """Format the share of a link in the whole factor of a variant, in logarithms; – where censoring leaves one of
        them unknown, or where there is no whole to take a share of."""
        whole = self.factor(name, self.middle, budget)
        part = link.samples if budget == "samples" else link.seconds
        if whole is None or part is None or whole.bounded or part.bounded or not whole.median[0] > 1:
            return "–"
        return f"{math.log(part.median[0]) / math.log(whole.median[0]):.0%}".replace("-", "−")

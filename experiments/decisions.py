"""Verdicts on an experiment's variants at equal samples and at equal seconds, for a page's template."""

from __future__ import annotations

from functools import cache

from dgpo_core.system.units import seconds
from dgpo_lab.ablation import words
from dgpo_lab.ablation.results import Results
from dgpo_lab.ablation.statistics import Interval, t_interval
from experiments.statistics.contrasts import Contrast, Rule, contrasts
from experiments.statistics.curves import Crossing
from experiments.statistics.summaries import Budget, crossings, horizon, summaries
from experiments.statistics.targets import median_time, ratio

__all__ = ["Decisions"]

IN_A_ROW = 2
"""Evaluations in a row at or above the target, of which the first is the time to it."""


class Decisions:
    """Contrasts to the baseline as one family for each budget, and times to the target."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.contrasts = cache(self._contrasts)

    @property
    def has_curves(self) -> bool:
        """Whether cells were evaluated more often than at their start and end."""
        return any(len(trace.scores) > 2 for trace in self.results.traces)

    def horizon(self, budget: Budget) -> str:
        """Format the budget at which variants are compared: 2,880 samples, or 1m 20s."""
        found = horizon(self.results, budget)
        return f"{found:,.0f} samples" if budget == "samples" else seconds(found)

    def _contrasts(self, budget: Budget, margin: float, against: str | None = None) -> list[Contrast]:
        """Return the contrast of every other variant to the baseline, or to a variant, by its score at the budget.

        Against a variant, the baseline is left out: it has been compared.
        """
        values = summaries(self.results, budget, "score")
        return contrasts(values, self._pairs(against or self.results.baseline), Rule(margin))

    def monitored(self, monitor: str) -> list[Contrast]:
        """Return the contrast of every other variant to the baseline, by a monitor at the last evaluation; no
        difference counts as none."""
        values = {
            variant.name: {t.seed: t.monitors[monitor].last for t in variant.finished if monitor in t.monitors}
            for variant in self.results.variants
        }
        return contrasts(values, self._pairs(self.results.baseline), Rule(0.0))

    def first(self, monitor: str) -> Interval:
        """Return the mean of a monitor at the first evaluation of the baseline's cells, over seeds."""
        (variant,) = (one for one in self.results.variants if one.name == self.results.baseline)
        return t_interval([t.monitors[monitor].first for t in variant.finished if monitor in t.monitors])

    def last(self, name: str, monitor: str) -> Interval | None:
        """Return the mean of a monitor at the last evaluation, over seeds; None if it was not measured."""
        (variant,) = (one for one in self.results.variants if one.name == name)
        found = [t.monitors[monitor].last for t in variant.finished if monitor in t.monitors]
        return t_interval(found) if found else None

    def _pairs(self, against: str) -> list[tuple[str, str]]:
        names = [variant.name for variant in self.results.variants if variant.name != self.results.baseline]
        return [(name, against) for name in names if name != against]

    def sentences(self, budget: Budget, margin: float, against: str | None = None) -> list[str]:
        """Return a sentence for each contrast, in the order of the variants."""
        return [_sentence(one, margin) for one in self.contrasts(budget, margin, against)]

    def area(self, name: str, budget: Budget) -> Interval | None:
        """Return the difference of the area under the curve to the baseline's, over seeds; None without a common
        seed."""
        found = summaries(self.results, budget, "area")
        own, base = found[name], found[self.results.baseline]
        common = sorted(own.keys() & base.keys())
        return t_interval([own[seed] - base[seed] for seed in common]) if common else None

    def median_time(self, name: str, budget: Budget) -> str:
        """Format the Kaplan-Meier median of the budget until the target."""
        crossings = self._crossings(budget)[name]
        found = median_time(list(crossings.values())) if crossings else None
        if found is None:
            return "–" if not crossings else f"more than {max(one.place for one in crossings.values()):,.0f}"
        return f"{found:,.0f}"

    def ratio(self, name: str, budget: Budget) -> str:
        """Format the ratio of the budget until the target to the baseline's."""
        own, base = (self._crossings(budget)[one] for one in (name, self.results.baseline))
        common = [seed for seed in sorted(own.keys() & base.keys()) if own[seed].place > 0 and base[seed].place > 0]
        return ratio([own[s] for s in common], [base[s] for s in common]).text() if common else "–"

    def _crossings(self, budget: Budget) -> dict[str, dict[int, Crossing]]:
        """Return when each finished cell reached the target, by variant and seed."""
        assert self.results.target is not None
        return crossings(self.results, self.results.target, budget, IN_A_ROW)


def _sentence(one: Contrast, margin: float) -> str:
    found = words.signed(one.difference)
    if one.verdict == "equivalent":
        return f"`{one.name}` and `{one.against}` are equivalent within ±{margin:g}: {found}."
    if one.verdict == "difference":
        better = "more" if one.difference.value > 0 else "less"
        return f"`{one.name}` scores {better} than `{one.against}`: {found}."
    return f"`{one.name}` against `{one.against}` is undecided: {found}."

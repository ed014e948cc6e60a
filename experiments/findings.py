"""Sentences about an experiment's results, computed so that a page cannot contradict its table.

The sentences use "more" and "less" only where the 95 % interval of the paired difference excludes 0.
"""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dgpo_core.system.units import seconds
from dgpo_lab.ablation import words
from dgpo_lab.ablation.results import Difference, Results, VariantResult, compare
from dgpo_lab.ablation.statistics import Interval, t_interval
from experiments.record import Record
from experiments.statistics.contrasts import equivalence_p

__all__ = ["Findings", "Ratio"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of the cost of a variant to that of the baseline, until the target is reached.

    interval: geometric mean over the seeds for which both reached the target, with a t interval of the logarithms;
    lower_bounds: bounds for seeds for which only the baseline did.
    """

    interval: Interval | None
    lower_bounds: Sequence[float]

    @property
    def seeds(self) -> int:
        """Number of seeds for which the baseline reached the target."""
        return len(self.lower_bounds) + (self.interval.n if self.interval is not None else 0)

    def text(self) -> str:
        """Return `3.1 times [2.2, 4.4]`, or lower bounds if seeds did not reach the target."""
        texts = []
        if self.interval is not None:
            found = self.interval
            span = f" [{found.low:.1f}, {found.high:.1f}]" if found.low is not None and found.high is not None else ""
            texts.append(f"{found.value:.1f} times as much{span} (geometric mean, {found.n} seeds)")
        if self.lower_bounds:
            n = len(self.lower_bounds)
            texts.append(
                f"more than {min(self.lower_bounds):.1f} times as much ({n} of {self.seeds} seeds did not reach it)"
            )
        return "; ".join(texts) or "cannot be said: the baseline did not reach the target"


class Findings:
    """Sentences and numbers for a page's template."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.results: Results = record.results

    def variant(self, name: str) -> VariantResult:
        """Return a variant by name."""
        return next(variant for variant in self.results.variants if variant.name == name)

    @cached_property
    def baseline(self) -> VariantResult:
        """The variant that others are compared with."""
        return self.variant(self.results.baseline)

    @property
    def others(self) -> list[VariantResult]:
        """All but the baseline."""
        return [variant for variant in self.results.variants if variant is not self.baseline]

    def score(self, name: str) -> str:
        """Format a variant's score: 0.612 [0.570, 0.655]."""
        return words.interval(self.variant(name).score)

    def verdict(self, name: str, against: str | None = None) -> str:
        """Return a sentence that compares a variant with the baseline or another variant."""
        other = against or self.results.baseline
        found = self.difference(name, other)
        if found is None:
            return f"`{name}` and `{other}` have no seed in common."
        difference = words.signed(found.over_seeds)
        p = f"p = {words.p_value(found.test.p)}" + (
            f", {words.p_value(found.corrected)} after Holm's correction"
            if against is None and len(self.others) > 1
            else ""
        )
        sign = _sign(found)
        if sign == 0:
            return f"`{name}` and `{other}` cannot be told apart: {difference} ({p})."
        return f"`{name}` scores {'more' if sign > 0 else 'less'} than `{other}`: {difference} ({p})."

    def equivalence(self, name: str, margin: float) -> str:
        """Return whether the 90 % interval of the paired difference to the baseline lies within ±margin: two one-sided
        t tests at 5 % (Schuirmann 1987)."""
        baselines = {trace.seed: trace.score for trace in self.baseline.finished}
        differences = [t.score - baselines[t.seed] for t in self.variant(name).finished if t.seed in baselines]
        found = t_interval(differences, level=0.9)
        verdict = "are" if equivalence_p(differences, margin) < 0.05 else "are not shown to be"
        return (
            f"`{name}` and `{self.results.baseline}` {verdict} equivalent: the difference is {words.signed(found)} "
            f"(90 % interval), and the margin is ±{margin:g}."
        )

    def difference(self, name: str, against: str) -> Difference | None:
        """Return the difference of two variants, seed by seed; None without common seeds."""
        if against == self.results.baseline:
            return self.variant(name).difference
        results = compare(
            {variant.name: variant.axes for variant in self.results.variants},
            self.results.traces,
            reward=self.results.reward,
            baseline=against,
            target=self.results.target,
        )
        return next(variant for variant in results.variants if variant.name == name).difference

    def best(self, names: Sequence[str]) -> str:
        """Return the variant with the highest score."""
        return max(names, key=lambda name: score.value if (score := self.variant(name).score) else -math.inf)

    def gain(self, name: str) -> str:
        """Format the gain over the base model's score, paired by seed, with its t interval."""
        return words.signed(t_interval([t.score - t.scores[0] for t in self.variant(name).finished]))

    def change(self, name: str, monitor: str) -> Interval:
        """Return the change of a monitor since the first evaluation, over seeds."""
        return t_interval([t.monitors[monitor].last - t.monitors[monitor].first for t in self.variant(name).finished])

    def change_text(self, name: str, monitor: str) -> str:
        """Format the change of a monitor: +0.010 [+0.004, +0.016]."""
        found = self.change(name, monitor)
        components = [f"{v:+.4f}" for v in (found.value, found.low, found.high) if v is not None]
        return (components[0] + (f" [{components[1]}, {components[2]}]" if len(components) == 3 else "")).replace(
            "-", "−"
        )

    def monitor_verdict(self, name: str, monitor: str) -> str:
        """Format the difference of a monitor's last value to the baseline's, seed by seed."""
        baselines = {trace.seed: trace for trace in self.baseline.finished}
        pairs = [(t, baselines[t.seed]) for t in self.variant(name).finished if t.seed in baselines]
        found = t_interval([one.monitors[monitor].last - other.monitors[monitor].last for one, other in pairs])
        return words.signed(found)

    def ratio(self, name: str, what: str) -> Ratio:
        """Return the ratio of `what` ("seconds" or "samples") to that of the baseline, until the target is reached."""
        assert self.results.target is not None
        baselines = {trace.seed: trace for trace in self.baseline.finished}
        logs, bounds = [], []
        for trace in self.variant(name).finished:
            other = baselines.get(trace.seed)
            place = None if other is None else other.reached(self.results.target)
            if other is None or not place:
                continue
            needed = getattr(other, what)[place]
            reached = trace.reached(self.results.target)
            if reached is None:
                bounds.append(getattr(trace, what)[-1] / needed)
            else:
                logs.append(math.log(getattr(trace, what)[reached] / needed))
        if not logs:
            return Ratio(None, bounds)
        log = t_interval(logs)
        low, high = (None if v is None else math.exp(v) for v in (log.low, log.high))
        return Ratio(Interval(math.exp(log.value), low, high, log.n, "seeds"), bounds)

    def seconds_per_iteration(self, name: str) -> str:
        """Format the median over seeds of the mean seconds per training iteration."""
        return seconds(plain.median(t.seconds[-1] / t.iterations[-1] for t in self.variant(name).finished))

    def seconds_of_run(self, name: str) -> str:
        """Format the median over seeds of the training time."""
        return seconds(plain.median(t.seconds[-1] for t in self.variant(name).finished))


def _sign(found: Difference) -> int:
    low, high = found.over_seeds.low, found.over_seeds.high
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0

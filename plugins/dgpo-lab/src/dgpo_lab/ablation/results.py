"""Compare variants with the baseline. Pure functions of traces, except `results_of`."""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dgpo_core.system.units import seconds
from dgpo_lab.ablation.directory import saved_directory
from dgpo_lab.ablation.plan import Plan
from dgpo_lab.ablation.statistics import Interval, SignFlip, holm, sign_flip_test, t_interval, two_way_interval
from dgpo_lab.ablation.traces import MonitorValues, Trace, read_trace

__all__ = ["Difference", "MonitorMean", "Reached", "Results", "VariantResult", "by_prompt", "compare", "results_of"]


@dataclass(frozen=True, slots=True)
class Reached:
    """When the finished seeds first reached the target: seconds and samples of the seeds that did, and those spent by
    the seeds that did not (censored)."""

    seconds: Sequence[float]
    samples: Sequence[int]
    censored_seconds: Sequence[float]
    censored_samples: Sequence[int]

    @property
    def n(self) -> int:
        """Number of finished seeds."""
        return len(self.seconds) + len(self.censored_seconds)

    @property
    def complete(self) -> bool:
        """Whether every seed reached the target; only then is a median reported."""
        return self.n > 0 and not self.censored_seconds

    def text(self, what: str) -> str:
        """Return `median 31.0s (28.0s to 40.2s)`, or the number of seeds that did not reach the target."""
        found: Sequence[float] = self.seconds if what == "seconds" else self.samples
        spent: Sequence[float] = self.censored_seconds if what == "seconds" else self.censored_samples

        def shown(value: float) -> str:
            return seconds(value) if what == "seconds" else f"{value:,.0f}"

        if not self.n:
            return "–"
        if self.complete:
            middle = shown(plain.median(found))
            return middle if self.n == 1 else f"median {middle} ({shown(min(found))} to {shown(max(found))})"
        within = shown(min(spent)) if min(spent) == max(spent) else f"{shown(min(spent))} to {shown(max(spent))}"
        return f"not reached in {len(spent)} of {self.n} (within {within})"


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a variant to the baseline over the `seeds` that both have finished."""

    seeds: Sequence[int]
    values: Sequence[float]
    over_seeds: Interval
    over_both: Interval | None
    """Over seeds and held-out prompts; None if prompt scores were not kept or prompts differ."""
    test: SignFlip
    corrected: float
    """p of the test after Holm's correction over all variants."""


@dataclass(frozen=True, slots=True)
class MonitorMean:
    """A monitor: means over n seeds of its last value and of its change since the first evaluation; left: number of
    seeds in which it left its tolerance."""

    last: float
    change: float
    left: int
    n: int


@dataclass(frozen=True)
class VariantResult:
    """Results of a variant. traces: those of all seeds."""

    name: str
    axes: Mapping[str, str]
    traces: Sequence[Trace]
    score: Interval | None
    reached: Reached | None
    monitors: Mapping[str, MonitorMean]
    others: Mapping[str, float]
    difference: Difference | None = None

    @property
    def finished(self) -> Sequence[Trace]:
        """Traces of the finished cells."""
        return [trace for trace in self.traces if trace.finished]


@dataclass(frozen=True)
class Results:
    """Results of an ablation. base_model: score before training, over seeds; paired: whether it is equal for all
    variants, seed by seed (None if no two can be compared)."""

    reward: str
    baseline: str
    target: float | None
    variants: Sequence[VariantResult]
    base_model: Interval | None
    paired: bool | None

    @property
    def traces(self) -> Sequence[Trace]:
        """Traces of all cells."""
        return [trace for variant in self.variants for trace in variant.traces]


def results_of(plan: Plan) -> Results:
    """Compute the results of an ablation from its logs. Raises UserError for a log that cannot be read."""
    directory = saved_directory(plan)
    traces = [read_trace(cell, directory, plan.reward) for cell in plan.cells()]
    named = {variant.name: variant.axes for variant in plan.variants}
    return compare(named, traces, reward=plan.reward, baseline=plan.baseline, target=plan.target)


def compare(
    named: Mapping[str, Mapping[str, str]], traces: Sequence[Trace], *, reward: str, baseline: str, target: float | None
) -> Results:
    """Compute the results of an ablation from finished cells. named: axes of each variant, by name."""
    variants = {
        name: _variant(name, axes, [trace for trace in traces if trace.variant == name], reward, target)
        for name, axes in named.items()
    }
    others = [name for name in variants if name != baseline]
    found = {name: _difference(variants[name], variants[baseline], reward) for name in others}
    known = {name: difference for name, difference in found.items() if difference is not None}
    for (name, difference), p in zip(known.items(), holm([one.test.p for one in known.values()]), strict=True):
        variants[name] = replace(variants[name], difference=replace(difference, corrected=p))
    return Results(reward, baseline, target, list(variants.values()), _base_model(traces), _paired(traces))


def _variant(
    name: str, axes: Mapping[str, str], traces: Sequence[Trace], reward: str, target: float | None
) -> VariantResult:
    finished = [trace for trace in traces if trace.finished]
    score = None
    if finished:
        found = by_prompt(finished, reward)
        score = t_interval([trace.score for trace in finished]) if found is None else two_way_interval(*found)
    monitors = {
        monitor: _monitor_mean([trace.monitors[monitor] for trace in finished if monitor in trace.monitors])
        for monitor in dict.fromkeys(monitor for trace in finished for monitor in trace.monitors)
    }
    others = {
        other: plain.fmean(trace.others[other][-1] for trace in finished if other in trace.others)
        for other in dict.fromkeys(other for trace in finished for other in trace.others)
    }
    reached = None if target is None else _reached(finished, target)
    return VariantResult(name, axes, traces, score, reached, monitors, others)


def _monitor_mean(monitors: Sequence[MonitorValues]) -> MonitorMean:
    return MonitorMean(
        last=plain.fmean(monitor.last for monitor in monitors),
        change=plain.fmean(monitor.last - monitor.first for monitor in monitors),
        left=sum(monitor.out_of_tolerance for monitor in monitors),
        n=len(monitors),
    )


def _reached(finished: Sequence[Trace], target: float) -> Reached:
    places = [(trace, trace.reached(target)) for trace in finished]
    return Reached(
        seconds=[trace.seconds[place] for trace, place in places if place is not None],
        samples=[trace.samples[place] for trace, place in places if place is not None],
        censored_seconds=[trace.seconds[-1] for trace, place in places if place is None],
        censored_samples=[trace.samples[-1] for trace, place in places if place is None],
    )


def by_prompt(traces: Sequence[Trace], reward: str) -> tuple[NDArray[np.float64], Sequence[str]] | None:
    """Return the last scores [S, P] and tasks [P]; None unless every seed kept them for the same prompts."""
    found = [trace.prompts for trace in traces]
    if any(one is None or reward not in one.rewards for one in found):
        return None
    kept = [one for one in found if one is not None]
    first = kept[0].rewards[reward]
    if any(one.prompts != kept[0].prompts or one.rewards[reward].tasks != first.tasks for one in kept):
        return None
    values = [[np.nan if v is None else v for v in one.rewards[reward].values] for one in kept]
    return np.array(values, dtype=np.float64), first.tasks


def _difference(variant: VariantResult, against: VariantResult, reward: str) -> Difference | None:
    """Compare two variants seed by seed; None if no seed has finished in both."""
    baselines = {trace.seed: trace for trace in against.finished}
    pairs = [(trace, baselines[trace.seed]) for trace in variant.finished if trace.seed in baselines]
    if not pairs:
        return None
    values = [one.score - other.score for one, other in pairs]
    both = None
    scores, base = (by_prompt([pair[side] for pair in pairs], reward) for side in (0, 1))
    same_prompts = all(
        one.prompts is not None and other.prompts is not None and one.prompts.prompts == other.prompts.prompts
        for one, other in pairs
    )
    if scores is not None and base is not None and same_prompts and scores[1] == base[1]:
        both = two_way_interval(scores[0] - base[0], scores[1])
    test = sign_flip_test(values)
    return Difference([one.seed for one, _ in pairs], values, t_interval(values), both, test, test.p)


def _base_scores(traces: Sequence[Trace]) -> list[list[float]]:
    """Return the scores of the base model, a list over variants for each seed."""
    seen: dict[int, list[float]] = {}
    for trace in traces:
        if trace.iterations and trace.iterations[0] == 0:
            seen.setdefault(trace.seed, []).append(trace.scores[0])
    return list(seen.values())


def _base_model(traces: Sequence[Trace]) -> Interval | None:
    """Return the base model's score over seeds, from the first variant that evaluated it."""
    found = _base_scores(traces)
    return t_interval([scores[0] for scores in found]) if found else None


def _paired(traces: Sequence[Trace]) -> bool | None:
    """Return whether the base model's scores are equal in all variants, so that prompts and noise are shared."""
    several = [scores for scores in _base_scores(traces) if len(scores) > 1]
    return all(score == scores[0] for scores in several for score in scores) if several else None

"""The texts of an ablation's results: the headline, how to read the numbers, and their limitations."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_lab.ablation.pairing import unpaired
from dgpo_lab.ablation.plan import Plan
from dgpo_lab.ablation.results import Difference, Results, VariantResult
from dgpo_lab.ablation.statistics import Interval, pairs_for
from dgpo_lab.reporting.summary import scored

__all__ = ["headline", "how_to_read", "interval", "p_value", "signed", "warnings"]

FEWEST = 5
"""Minimum number of paired seeds for a headline to call a difference clear of 0. With fewer, a narrow t interval may
be due to chance, and the sign-flip test cannot give p < 0.125."""
LEVEL = 0.05
"""The p value for which the results state how many pairs are missing."""


def interval(found: Interval | None, digits: int = 3) -> str:
    """Format an interval: 0.481 [0.440, 0.520]."""
    if found is None:
        return "–"
    return scored(found, digits).replace("-", "−")


def signed(found: Interval | None) -> str:
    """Format a signed interval: +0.041 [−0.010, +0.092], with more decimals for small values."""
    if found is None:
        return "–"
    largest = max(abs(v) for v in (found.value, found.low, found.high) if v is not None)
    digits = 3 if largest >= 0.01 or largest == 0 else 5
    value, low, high = (None if v is None else f"{v:+.{digits}f}" for v in (found.value, found.low, found.high))
    return str(value if low is None else f"{value} [{low}, {high}]").replace("-", "−")


def p_value(p: float) -> str:
    """Format a p value: 0.062, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def headline(results: Results) -> str:
    """Return a sentence that names the best variant and whether its lead could be due to chance.

    Variants are ranked by paired differences, because scores over different seeds are less comparable.
    """
    scored = [variant for variant in results.variants if variant.score is not None]
    if not scored:
        return "No cell has finished yet: there is nothing to compare."
    base = next(variant for variant in results.variants if variant.name == results.baseline)
    compared = [variant for variant in scored if variant is base or variant.difference is not None]
    best = max(compared, key=_lead) if base in compared else max(scored, key=_value)
    if len(results.variants) == 1:
        before = "" if results.base_model is None else f"; the base model scores {interval(results.base_model)}"
        return f"{best.name} reaches {results.reward} {interval(best.score)}{before}."
    lead = f"{best.name} has the highest {results.reward}, {interval(best.score)}"
    if len(scored) == 1:
        return f"{lead}; no other variant has a finished cell yet."
    if best.name == results.baseline:
        others = [variant for variant in scored if variant.difference is not None]
        few = [v.difference for v in others if v.difference and v.difference.test.n < FEWEST]
        clear = [v for v in others if v.difference and _excludes_zero(v.difference) and v.difference not in few]
        unclear = ""
        if few:
            has = "has" if len(few) == 1 else "have"
            missing = _missing(min(found.test.n for found in few))
            unclear = f"; {len(few)} {has} too few paired seeds to tell from chance: {missing}"
        return (
            f"{lead}; it is the baseline. The interval of the difference to it excludes 0 for {len(clear)} of "
            f"{len(others)} others{unclear}."
        )
    if best.difference is None:
        return f"{lead}; the baseline {results.baseline} has no finished cell yet."
    found = best.difference
    clear_of_zero = "excludes" if _excludes_zero(found) else "contains"
    if found.over_seeds.low is None:
        return f"{lead}: {signed(found.over_seeds)} against {results.baseline}, from one seed, which tells no chance."
    if found.test.n < FEWEST and _excludes_zero(found):
        return (
            f"{lead}: {signed(found.over_seeds)} against {results.baseline} over {found.test.n} paired seeds, too few "
            f"to tell it from chance: the sign-flip test gives p = {p_value(found.test.p)}, and "
            f"{_missing(found.test.n)}."
        )
    return (
        f"{lead}: {signed(found.over_seeds)} against {results.baseline} over {found.test.n} paired seeds; the interval "
        f"{clear_of_zero} 0, and the sign-flip test gives p = {p_value(found.test.p)} "
        f"({p_value(found.corrected)} after Holm's correction)."
    )


def _missing(n: int) -> str:
    more = pairs_for(LEVEL) - n
    return f"any p below {LEVEL:g} takes at least {more} {'pair' if more == 1 else 'pairs'} more"


def _lead(variant: VariantResult) -> float:
    return 0.0 if variant.difference is None else variant.difference.over_seeds.value


def _value(variant: VariantResult) -> float:
    assert variant.score is not None
    return variant.score.value


def _excludes_zero(found: Difference) -> bool:
    low, high = found.over_seeds.low, found.over_seeds.high
    return low is not None and high is not None and (low > 0 or high < 0)


def how_to_read(plan: Plan, results: Results) -> list[str]:
    """Return explanations of the columns, in the order of the table."""
    kinds = dict.fromkeys(variant.score.over for variant in results.variants if variant.score is not None)
    means = {
        "seeds and prompts": "over training seeds (Student's t) and held-out prompts (bootstrap within tasks) "
        "together: another seed, other prompts",
        "seeds": "over training seeds (Student's t): another seed, the same prompts",
        "prompts": "over held-out prompts only (bootstrap within tasks), from one seed: another seed may lie outside",
    }
    lines = [
        f"Scores are {results.reward} on held-out prompts at a cell's last evaluation, as mean and 95 % interval "
        + "; ".join(means[kind] for kind in kinds)
        + "."
        if kinds
        else "No cell has finished."
    ]
    tested = [variant.difference for variant in results.variants if variant.difference is not None]
    if tested:
        n = max(found.test.n for found in tested)
        smallest = min(found.test.smallest for found in tested)
        lines.append(
            f"Differences are to {results.baseline}, seed by seed, with the t interval of their mean. p is that of the "
            f"{'exact ' if all(found.test.exact for found in tested) else ''}paired sign-flip test; with {n} "
            f"{'seed' if n == 1 else 'seeds'} it cannot be below {smallest:.4g}"
            + (
                "."
                if len(tested) == 1
                else f", nor below {min(1.0, smallest * len(tested)):.4g} after Holm's correction over {len(tested)}."
            )
            + _seeds_to_come(n, len(tested))
        )
    if results.target is not None:
        lines.append(
            f"The target is {results.target:g}. Time and samples are those of training up to the first evaluation "
            "at or above it, so they are as coarse as evaluation.every; evaluations and checkpoints are not counted. "
            "A median is given only where every seed reached it."
        )
    return lines


def _seeds_to_come(n: int, comparisons: int) -> str:
    """State how many more seeds p < LEVEL requires; empty if there are enough."""
    one, all_of_them = (max(0, pairs_for(LEVEL, count) - n) for count in (1, comparisons))
    if not all_of_them:
        return ""
    if one == all_of_them:
        return f" A p below {LEVEL:g} takes at least {one} more."
    before = f"{one} more, and " if one else ""
    return f" A p below {LEVEL:g} takes at least {before}{all_of_them} more after the correction."


def warnings(plan: Plan, results: Results) -> list[str]:
    """Return the limitations of the comparison."""
    found = []
    counts = {status: [t for t in results.traces if t.state.status == status] for status in ("failed", "unfinished")}
    waiting = [t for t in results.traces if t.state.status == "not started"]
    for trace in counts["failed"]:
        cell = next(c for c in plan.cells() if (c.variant, c.seed) == (trace.variant, trace.seed))
        found.append(f"{cell.label} failed: {trace.state.message}. Its log is {cell.path / 'train.log'}.")
    left = len(counts["unfinished"]) + len(waiting)
    if left:
        suffix = "is not finished and does not count" if left == 1 else "are not finished and do not count"
        found.append(f"{left} of {len(results.traces)} cells {suffix}.")
    silent = [t for t in results.traces if t.state.status == "finished" and not t.finished]
    if silent:
        found.append(f"{len(silent)} finished cells have no evaluation with {results.reward}; they do not count.")
    if any(trace.ended_by == "target" for trace in results.traces):
        found.append(
            "Some cells ended because they reached stop.target: their last scores say little, compare times instead."
        )
    if results.target is not None:
        early = sum(t.finished and t.iterations[0] == 0 and t.reached(results.target) == 0 for t in results.traces)
        if early:
            found.append(f"The base model is at the target before training in {early} cells: a higher one tells more.")
    at_once = plan.ablation.parallel or 1
    if results.target is not None and at_once > max(1, len(plan.ablation.devices or ())):
        found.append(f"Up to {at_once} cells shared a device: their seconds are longer than those of a cell alone.")
    if results.paired is False:
        found.append("The base model does not score the same in every variant: evaluations are not paired.")
    return [*found, *unpaired(plan.variants)]


def seeds_of(variant: VariantResult) -> str:
    """Format the number of finished seeds: 5, or 4 of 5."""
    done, total = len(variant.finished), len(variant.traces)
    return str(total) if done == total else f"{done} of {total}"


def columns(results: Results) -> Sequence[str]:
    """Return the axes of the variants, in order."""
    return list(dict.fromkeys(axis for variant in results.variants for axis in variant.axes))

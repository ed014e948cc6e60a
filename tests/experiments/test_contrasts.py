"""Contrasts and verdicts against scipy, and their error rates in simulated worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dgpo_lab.ablation.statistics import t_interval
from experiments.statistics.contrasts import Contrast, Rule, contrasts, equivalence_p


@pytest.mark.parametrize("n", [2, 3, 8, 20])
@pytest.mark.parametrize("shift", [0.0, 0.02, -0.05])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.1])
def test_equivalence_is_scipys_two_one_sided_tests(n: int, shift: float, margin: float) -> None:
    differences = np.random.default_rng(n).normal(shift, 0.03, n)
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    found = equivalence_p(list(differences), margin)
    assert found == pytest.approx(max(above, below), rel=1e-9)
    interval = t_interval(list(differences), 0.9)
    assert interval.low is not None
    assert interval.high is not None
    assert (found <= 0.05) == (interval.low >= -margin and interval.high <= margin)


def test_equivalence_of_what_does_not_vary() -> None:
    assert equivalence_p([0.01], 0.02) == 1.0
    assert equivalence_p([0.01, 0.01], 0.02) == 0.0
    assert equivalence_p([0.02, 0.02], 0.02) == 1.0


def values(**arms: list[float]) -> dict[str, dict[int, float]]:
    return {name: dict(enumerate(scores)) for name, scores in arms.items()}


def test_verdicts_and_corrections_are_those_of_the_family() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0.6, 0.05, 12)
    arms = values(
        base=list(base),
        better=list(base + 0.08 + generator.normal(0, 0.02, 12)),
        same=list(base + generator.normal(0, 0.005, 12)),
        noisy=list(base + generator.normal(0.01, 0.08, 12)),
    )
    found = contrasts(arms, [(name, "base") for name in ("better", "same", "noisy")], Rule(margin=0.02))
    assert [one.verdict for one in found] == ["difference", "equivalent", "undecided"]
    for one in found:
        differences = [arms[one.name][seed] - arms["base"][seed] for seed in range(12)]
        exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert one.p == pytest.approx(exact.pvalue)
        assert one.difference == t_interval(differences)
        low, high = stats.t.interval(0.95, 11, loc=np.mean(differences), scale=stats.sem(differences))
        assert one.half_width == pytest.approx((high - low) / 2)
        assert one.equivalent == equivalence_p(differences, 0.02)
    ps = [one.p for one in found]
    order = np.argsort(ps)
    stepped = np.minimum(1, np.maximum.accumulate(np.array(ps)[order] * [3, 2, 1]))
    assert [found[i].corrected for i in order] == pytest.approx(stepped.tolist())


def test_a_small_difference_that_is_certain_is_equivalent() -> None:
    """The margin says which differences matter: +0.005, with all twelve signs alike, does not."""
    base = np.linspace(0.5, 0.6, 12)
    (found,) = contrasts(values(a=list(base + 0.005 + base * 1e-3), b=list(base)), [("a", "b")], Rule(margin=0.02))
    assert found.p < 0.001
    assert found.verdict == "equivalent"


def test_only_common_seeds_are_compared() -> None:
    arms = {"a": {0: 0.5, 1: 0.6, 7: 0.9}, "b": {1: 0.5, 7: 0.7, 9: 0.1}, "c": {3: 0.1}}
    found = contrasts(arms, [("a", "b"), ("a", "c")], Rule(margin=0.02))
    assert len(found) == 1
    assert found[0].difference.n == 2
    assert found[0].difference.value == pytest.approx(0.15)
    (single,) = contrasts(values(a=[0.5], b=[0.2]), [("a", "b")], Rule(margin=0.02))
    assert (single.verdict, single.half_width) == ("undecided", math.inf)
    assert contrasts(arms, [], Rule(margin=0.02)) == []


def run(generator: np.random.Generator, shifts: list[float], seeds: int) -> list[Contrast]:
    base = generator.normal(0.6, 0.05, seeds)
    arms = {"base": dict(enumerate(base))}
    for i, shift in enumerate(shifts):
        arms[str(i)] = dict(enumerate(base + shift + generator.normal(0, 0.03, seeds)))
    return contrasts(arms, [(str(i), "base") for i in range(len(shifts))], Rule(margin=0.02))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shifts", "wrong"),
    [([0.0] * 4, "difference"), ([0.02, -0.02, 0.02, 0.05], "equivalent"), ([0.0] * 1, "difference")],
)
def test_a_claim_is_wrong_in_at_most_a_twentieth_of_worlds(shifts: list[float], wrong: str) -> None:
    """True zeros are seldom called different, any of a family; a difference at the margin seldom equivalent."""
    generator = np.random.default_rng(4)
    worlds = 400
    of_family = any if wrong == "difference" else np.mean
    failed = sum(of_family([one.verdict == wrong for one in run(generator, shifts, 8)]) for _ in range(worlds))
    assert failed / worlds <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / worlds)


@pytest.mark.slow
def test_contrasts_find_what_is_there() -> None:
    """With 14 seeds of an sd of 0.03, +0.06 is found and 0 is shown to be none, each in most worlds."""
    generator = np.random.default_rng(5)
    found = [run(generator, [0.06, 0.0], 14) for _ in range(60)]
    assert np.mean([one.verdict == "difference" for one, _ in found]) > 0.9
    assert np.mean([other.verdict == "equivalent" for _, other in found]) > 0.3

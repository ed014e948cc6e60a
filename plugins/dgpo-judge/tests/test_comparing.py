"""Comparisons: which are made, and what they amount to, against loops and another optimizer."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kendalltau, rankdata

from dgpo_core.types import SampleKey
from dgpo_judge.comparing import (
    PRIOR,
    bradley_terry,
    kendall_distance,
    order_of,
    pairs_of,
    rank_values,
    win_rates,
    with_ties,
)


def keys(count: int) -> list[SampleKey]:
    return [("iteration", 3, "rollout", 5, i) for i in range(count)]


@given(st.integers(2, 30), st.randoms(use_true_random=False), st.integers(0, 3))
def test_orders_depend_on_the_keys_alone(count: int, random: Any, number: int) -> None:
    here = keys(count)
    shuffled = random.sample(here, count)
    assert [here[i] for i in order_of(here, number)] == [shuffled[i] for i in order_of(shuffled, number)]


def test_orders_differ() -> None:
    found = [tuple(order_of(keys(12), number)) for number in range(6)]
    assert len(set(found)) == 6
    assert all(sorted(order) == list(range(12)) for order in found)


@given(st.integers(2, 24), st.sampled_from([None, 2, 4, 8, 30]), st.randoms(use_true_random=False))
def test_pairs(count: int, opponents: int | None, random: Any) -> None:
    """No pair twice; each member meets as many others; the same pairs, in the same order, however members arrive."""
    here = keys(count)
    pairs = pairs_of(here, opponents)
    met = [sum(member in pair for pair in pairs) for member in range(count)]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(i != j for i, j in pairs)
    assert set(met) == {count - 1 if opponents is None else min(opponents, count - 1)}
    shuffled = random.sample(here, count)
    again = pairs_of(shuffled, opponents)
    assert {(here[i], here[j]) for i, j in pairs} == {(shuffled[i], shuffled[j]) for i, j in again}


@given(st.integers(2, 9), st.data())
def test_win_rates(count: int, data: Any) -> None:
    p = {pair: data.draw(st.floats(0, 1)) for pair in combinations(range(count), 2)}
    expected = [
        sum(p[i, j] if (i, j) in p else 1 - p[j, i] for j in range(count) if j != i) / (count - 1) for i in range(count)
    ]
    assert win_rates(count, p) == pytest.approx(expected, abs=1e-12)
    assert sum(win_rates(count, p)) / count == pytest.approx(0.5, abs=1e-12)
    assert np.isnan(win_rates(3, {(0, 1): 1.0})[2])


@pytest.mark.parametrize(
    ("preference", "margin", "value"), [(0.54, 0.05, 0.5), (0.46, 0.05, 0.5), (0.56, 0.05, 0.56), (0.5, 0, 0.5)]
)
def test_ties(preference: float, margin: float, value: float) -> None:
    assert with_ties(preference, margin) == value


def likelihood(s: np.ndarray, p: dict[tuple[int, int], float]) -> float:
    """The negative objective of `bradley_terry`, written anew."""
    total = 0.0
    for (i, j), q in p.items():
        total += q * np.logaddexp(0, s[j] - s[i]) + (1 - q) * np.logaddexp(0, s[i] - s[j])
    return total + PRIOR / 2 * float((np.logaddexp(0, s) + np.logaddexp(0, -s)).sum())


@pytest.mark.parametrize("count", [2, 3, 8, 24])
@pytest.mark.parametrize("hard", [False, True])
def test_bradley_terry_against_another_optimizer(count: int, hard: bool) -> None:
    rng = np.random.default_rng(count)
    pairs = pairs_of(keys(count), 4)
    strengths = 3 * rng.standard_normal(count)
    p = {(i, j): float(1 / (1 + np.exp(strengths[j] - strengths[i]))) for i, j in pairs}
    p = {pair: float(round(q)) for pair, q in p.items()} if hard else p
    best = minimize(likelihood, np.zeros(count), args=(p,), method="BFGS", options={"gtol": 1e-9}).x
    expected = [np.mean([1 / (1 + np.exp(best[j] - best[i])) for j in range(count) if j != i]) for i in range(count)]
    found = bradley_terry(count, p)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.mean(found) == pytest.approx(0.5, abs=1e-12)


def test_bradley_terry_of_perfect_answers_is_their_model() -> None:
    """With exact probabilities the strengths are found again, up to the prior."""
    m = np.linspace(0.2, 0.9, 8)
    p = {(i, j): float(m[i] / (m[i] + m[j])) for i, j in pairs_of(keys(8), 4)}
    expected = [np.mean([m[i] / (m[i] + m[j]) for j in range(8) if j != i]) for i in range(8)]
    assert bradley_terry(8, p) == pytest.approx(expected, abs=0.01)
    assert np.isnan(bradley_terry(3, {(0, 1): 0.9})[2])


@given(st.integers(2, 8), st.data())
def test_ranks(count: int, data: Any) -> None:
    rankings = data.draw(st.lists(st.permutations(range(count)), min_size=1, max_size=4))
    ranks = np.mean([rankdata([ranking.index(member) for member in range(count)]) - 1 for ranking in rankings], axis=0)
    assert rank_values(count, rankings) == pytest.approx((count - 1 - ranks) / (count - 1), abs=1e-12)
    one, other = rankings[0], rankings[-1]
    places = [[ranking.index(member) for member in range(count)] for ranking in (one, other)]
    tau = kendalltau(*places).statistic
    assert kendall_distance(one, other) == pytest.approx((1 - tau) / 2, abs=1e-12)


def test_ranks_of_all_orders_average_out() -> None:
    assert rank_values(4, list(permutations(range(4)))) == pytest.approx([0.5] * 4)

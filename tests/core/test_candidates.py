"""The choice among candidates, against a loop over all of them; rank correlations against scipy's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dgpo_core.draws import Draws
from dgpo_core.flow.candidates import ChosenDraws, extremes, rank_correlation


def by_sorting(rewards: list[float], scored: list[bool], best: int, worst: int) -> list[int]:
    """One candidate after the other, from either end of the sorted ones; then the first ones without a score."""
    order = sorted((i for i, known in enumerate(scored) if known), key=lambda i: (-rewards[i], i))
    missing = [i for i, known in enumerate(scored) if not known]
    chosen: list[int] = []
    for _ in range(best):
        chosen.append(order.pop(0) if order else missing.pop(0))
    for _ in range(worst):
        chosen.append(order.pop() if order else missing.pop(0))
    return sorted(chosen)


@pytest.mark.parametrize(("size", "best", "worst"), [(16, 4, 4), (9, 1, 4), (9, 5, 1), (6, 3, 3), (2, 1, 1)])
def test_the_best_and_the_worst_with_ties_and_missing_scores(size: int, best: int, worst: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rewards = torch.randint(-2, 4, (200, size), generator=generator).double()
    scored = torch.rand(200, size, generator=generator) < torch.rand(200, 1, generator=generator)
    for value in (0.0, math.nan, -1e100, 1e100):  # of candidates that are not scored
        found = extremes(rewards.masked_fill(~scored, value), scored, best, worst)
        for row in range(len(rewards)):
            expected = by_sorting(rewards[row].tolist(), scored[row].tolist(), best, worst)
            assert found[row].tolist() == expected
    assert found.dtype == torch.int64


def test_no_other_choice_has_a_larger_spread() -> None:
    """All subsets: none has a larger sum of its highest minus its lowest rewards."""
    rewards = torch.rand(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = extremes(rewards, torch.ones(20, 8, dtype=torch.bool), 2, 2)
    for row, members in zip(rewards, found.tolist(), strict=True):

        def spread(subset: tuple[int, ...], row: torch.Tensor = row) -> float:
            low = sorted(row[list(subset)].tolist())
            return low[3] + low[2] - low[1] - low[0]

        assert tuple(members) == max(itertools.combinations(range(8), 4), key=spread)


@pytest.mark.parametrize("best", [1, 2, 3])
def test_all_are_chosen_where_there_is_no_choice(best: int) -> None:
    rewards = torch.tensor([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for scored in (torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)):
        assert extremes(rewards, scored, best, 4 - best).tolist() == [[0, 1, 2, 3]] * 2


def test_members_have_the_keys_that_they_had_as_candidates() -> None:
    draws = Draws(4).at("iteration", 2)
    chosen = ChosenDraws(draws, [[0, 3], [1, 2]])
    found = [chosen.at(group, member) for group in range(2) for member in range(2)]
    assert found == [draws.at(0, 0), draws.at(0, 3), draws.at(1, 1), draws.at(1, 2)]


def test_rank_correlations_are_spearmans() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (2, 20, 16)).astype(np.float64)
    scored = generator.random((20, 16)) < 0.8
    expected = [stats.spearmanr(a[s], b[s]).statistic for a, b, s in zip(first, second, scored, strict=True)]
    first[~scored] = math.nan
    found = rank_correlation(torch.tensor(first), torch.tensor(second), torch.tensor(scored))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(torch.zeros(1, 4), torch.rand(1, 4), torch.ones(1, 4, dtype=torch.bool)).isnan().all()
    assert rank_correlation(torch.rand(1, 4), torch.rand(1, 4), torch.zeros(1, 4, dtype=torch.bool)).isnan().all()

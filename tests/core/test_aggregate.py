"""Several rewards as one, against loops over plain floats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo_core.flow.groups import advantages, aggregate
from dgpo_schemas.sections.rewards import AdvantagesSection

NAN = math.nan
EPSILON = 1e-4
How = Literal["weighted-sum", "group-normalized"]
HOW: tuple[How, ...] = ("weighted-sum", "group-normalized")
Values = Sequence[Sequence[Sequence[float]]]


def made(values: Values) -> Tensor:
    """[r, g, G]."""
    return torch.tensor(values, dtype=torch.float64)


def by_hand(values: Values, weights: Sequence[float], how: How) -> list[list[float | None]]:
    """GDPO (arXiv 2601.05242) group by group and member by member; None where a reward is missing."""
    found: list[list[float | None]] = []
    for g in range(len(values[0])):
        rows = [reward[g] for reward in values]
        members = [i for i in range(len(rows[0])) if not any(math.isnan(row[i]) for row in rows)]
        sums: list[float | None] = [0.0 if i in members else None for i in range(len(rows[0]))]
        for row, weight in zip(rows, weights, strict=True):
            present = [row[i] for i in members]
            mean = statistics.fmean(present) if present else 0.0
            std = statistics.pstdev(present) if present else 0.0
            for i in members:
                if how == "weighted-sum":
                    part = row[i]
                else:
                    part = 0.0 if min(present) == max(present) else (row[i] - mean) / (std + EPSILON)
                sums[i] = (sums[i] or 0.0) + weight * part
        found.append(sums)
    return found


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, -0.5, 0.25), (-1.0, -3.0, 0.0)])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.6])
def test_it_is_the_sum_by_hand(how: How, weights: tuple[float, ...], share: float) -> None:
    """Rewards of very different scales, a share of them missing at random."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 7, 6, generator=generator, dtype=torch.float64)
    values *= torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1)
    values[:, 0] = values[:, 0].round(decimals=1)
    values[torch.rand(values.shape, generator=generator) < share] = NAN
    values[1, 3] = 0.5  # one reward says the same of a whole group
    total, scored = aggregate(values, weights, how, EPSILON)
    expected = by_hand(values.tolist(), weights, how)
    assert total.dtype == torch.float64
    for g, row in enumerate(expected):
        assert scored[g].tolist() == [value is not None for value in row]
        assert total[g].tolist() == pytest.approx([value or 0.0 for value in row], rel=1e-9, abs=1e-12)
    if share == 0.6:
        assert not scored.all(1).any(), "the case that this is about"


def test_the_two_ways_on_a_worked_example() -> None:
    """Rewards of a group of two: (0, 2) and (30, 10). One standard deviation is 1 and 10."""
    values = made([[[0.0, 2.0]], [[30.0, 10.0]]])
    total, _ = aggregate(values, [1.0, 1.0], "weighted-sum", 0.0)
    assert total.tolist() == [[30.0, 12.0]], "the second reward drowns the first"
    total, _ = aggregate(values, [1.0, 1.0], "group-normalized", 0.0)
    assert total.tolist() == [[0.0, 0.0]], "each says the opposite of the other, equally loudly"
    total, _ = aggregate(values, [3.0, 1.0], "group-normalized", 0.0)
    assert total.tolist() == [[-2.0, 2.0]]
    total, _ = aggregate(values, [1.0, -1.0], "group-normalized", 0.0)
    assert total.tolist() == [[-2.0, 2.0]], "less of the second is better"


def test_what_normalizing_reports_apart() -> None:
    """The paper's motivating case: one group in which a member wins one of two rewards, and one in which it wins both.
    Sums normalized within their groups look the same; each reward normalized, and the sums over the batch, do not."""
    values = made([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])

    def winners(how: How, std: Literal["group", "batch"]) -> list[float]:
        total, scored = aggregate(values, [1.0, 1.0], how, EPSILON)
        found = advantages(total, scored, AdvantagesSection(std=std, epsilon=EPSILON))
        return found[:, 1].tolist()

    assert winners("weighted-sum", "group") == pytest.approx([1.0, 1.0], rel=1e-3)
    # The sums are -1, 1 and -2, 2: their spread over the batch is sqrt(10 / 4).
    assert winners("group-normalized", "batch") == pytest.approx([1 / 2.5**0.5, 2 / 2.5**0.5], rel=1e-3)
    # Normalized within the group once more, the difference is gone again.
    assert winners("group-normalized", "group") == pytest.approx([1.0, 1.0], rel=1e-3)


@given(
    scale=st.floats(0.01, 1e4),
    shift=st.floats(-1e3, 1e3),
    values=st.lists(st.integers(-20, 20), min_size=8, max_size=8),
)
def test_normalized_rewards_know_no_scale(scale: float, shift: float, values: list[int]) -> None:
    """Another unit or another zero of a reward changes no sum (but for epsilon, which is 0 here)."""
    first, second = made([[values[:4]]])[0], made([[values[4:]]])[0]
    plain, _ = aggregate(torch.stack([first, second]), [1.0, 2.0], "group-normalized", 0.0)
    other, _ = aggregate(torch.stack([first, second * scale + shift]), [1.0, 2.0], "group-normalized", 0.0)
    assert torch.allclose(plain, other, rtol=0, atol=1e-6)


def test_a_weighted_sum_knows_scale() -> None:
    values = made([[[0.0, 1.0]], [[0.5, 0.0]]])
    total, _ = aggregate(values * made([[[1.0]], [[1000.0]]]), [1.0, 1.0], "weighted-sum", EPSILON)
    assert total.tolist() == [[500.0, 1.0]]


@pytest.mark.parametrize("how", HOW)
def test_a_member_that_lacks_one_reward_takes_no_component_in_any(how: How) -> None:
    """Its other values must not move the mean or the spread of the rest."""
    values = made([[[0.2, 0.4, 1e6, 0.9]], [[3.0, 1.0, NAN, 2.0]]])
    total, scored = aggregate(values, [1.0, 0.5], how, EPSILON)
    assert scored.tolist() == [[True, True, False, True]]
    without, _ = aggregate(values[:, :, [0, 1, 3]], [1.0, 0.5], how, EPSILON)
    assert total[0, [0, 1, 3]].tolist() == pytest.approx(without[0].tolist(), rel=1e-12)
    assert total[0, 2] == 0.0


@pytest.mark.parametrize("how", HOW)
def test_a_group_without_scores_is_zero(how: How) -> None:
    total, scored = aggregate(made([[[NAN, NAN], [1.0, 2.0]]]), [1.0], how, EPSILON)
    assert scored.tolist() == [[False, False], [True, True]]
    assert total[0].tolist() == [0.0, 0.0]
    assert total.isfinite().all()


@given(value=st.floats(-1e6, 1e6), members=st.integers(2, 24), weight=st.floats(-5, 5))
def test_a_reward_that_says_the_same_of_all_adds_nothing(value: float, members: int, weight: float) -> None:
    """Not even rounding, which over a spread of epsilon would be taken for a preference."""
    other = list(range(members))
    values = made([[[value] * members], [other]])
    total, _ = aggregate(values, [weight, 1.0], "group-normalized", EPSILON)
    alone, _ = aggregate(values[1:], [1.0], "group-normalized", EPSILON)
    assert torch.equal(total, alone)


def test_one_scored_member_has_nothing_to_compare_with() -> None:
    total, scored = aggregate(made([[[0.7, NAN, NAN]]]), [1.0], "group-normalized", EPSILON)
    assert scored.tolist() == [[True, False, False]]
    assert total.tolist() == [[0.0, 0.0, 0.0]]


@given(st.lists(st.integers(-9, 9).map(float), min_size=3, max_size=12))
def test_one_reward_has_the_same_advantages_either_way(values: list[float]) -> None:
    """Normalizing twice is normalizing once, but for epsilon."""
    rewards = made([[values]])
    section = AdvantagesSection(std="group", clamp=100.0, epsilon=1e-9)
    plain, scored = aggregate(rewards, [2.0], "weighted-sum", 1e-9)
    normalized, _ = aggregate(rewards, [2.0], "group-normalized", 1e-9)
    assert torch.allclose(advantages(plain, scored, section), advantages(normalized, scored, section), atol=1e-6)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("weights", [(1e9, -1e9), (1e-30, 1e9), (1e-30, 1e-30), (0.0, 1e9)])
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e38, 1e100])
def test_extreme_numbers_give_finite_advantages(
    how: How, std: Literal["group", "batch", "none"], weights: Sequence[float], size: float
) -> None:
    """Every weight that a run file may have, and scores of every size that counts as one."""
    values = made([[[0.0, 0.25, 1.0, -1.0]], [[1.0, 1.0, 1.0, 1.0]]]) * size
    for epsilon in (1e-30, 1e6):
        rewards, scored = aggregate(values, weights, how, epsilon)
        assert bool(scored.all())
        found = advantages(rewards, scored, AdvantagesSection(std=std, epsilon=epsilon, clamp=5.0))
        assert found.dtype == torch.float64
        assert bool(found.isfinite().all())
        assert bool((found.abs() <= 5.0).all())
        assert bool((found[0][rewards[0].argsort()].diff() >= 0).all())


@pytest.mark.parametrize("value", [1e101, -1e101, 1.7e308, -math.inf, math.inf, NAN])
def test_what_is_too_large_for_a_score_is_missing(value: float) -> None:
    rewards, scored = aggregate(made([[[0.0, value, 1.0]]]), [1.0], "weighted-sum", EPSILON)
    assert scored.tolist() == [[True, False, True]]
    assert rewards.tolist() == [[0.0, 0.0, 1.0]]

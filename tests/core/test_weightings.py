"""Weightings against the paper's worked check and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from dgpo_core.builtin.options import (
    ClippedOptions,
    ConcentratedOptions,
    MinRangeOptions,
    SoftmaxOptions,
    TopKOptions,
)
from dgpo_core.builtin.weightings import (
    AbsAdvantage,
    BestVersusWorst,
    Binary,
    Clipped,
    Concentrated,
    Diverse,
    MinRange,
    Rank,
    Softmax,
    TopK,
    Uniform,
)
from dgpo_core.contracts import AdvantageWeighting, WeighedGroup
from dgpo_core.flow.groups import signed_weights

WEIGHTINGS: list[type[AdvantageWeighting]] = [
    AbsAdvantage,
    BestVersusWorst,
    Uniform,
    Rank,
    Softmax,
    Binary,
    TopK,
    Clipped,
    MinRange,
    Concentrated,
    Diverse,
]
OPTIONS = {
    Softmax: SoftmaxOptions(), TopK: TopKOptions(), Clipped: ClippedOptions(), MinRange: MinRangeOptions(),
    Concentrated: ConcentratedOptions(),
}  # fmt: skip
groups = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def _advantages(rewards: Tensor, clamp: float | None = None) -> Tensor:
    """(r - mean) / (population std + 1e-4)."""
    advantages = (rewards - rewards.mean()) / (rewards.var(unbiased=False).sqrt() + 1e-4)
    return advantages if clamp is None else advantages.clamp(-clamp, clamp)


def _weigh(
    weighting: type[AdvantageWeighting], *rewards: float, clamp: float | None = None, options: Any = None
) -> tuple[Tensor, Tensor]:
    """Weights, and signed weights as the engine makes them."""
    r = torch.tensor(rewards, dtype=torch.float64)
    advantages = _advantages(r, clamp)
    weights = weighting(options or OPTIONS.get(weighting)).weights(advantages, r)
    return weights, torch.where(advantages > 0, weights, -weights)


def test_abs_advantage_gives_the_papers_numbers() -> None:
    weights, signed = _weigh(AbsAdvantage, 10, 8, 5, 5)
    assert weights.tolist() == pytest.approx([1.4141, 0.4714, 0.9428, 0.9428], abs=5e-5)
    assert signed.tolist() == pytest.approx([1.4141, 0.4714, -0.9428, -0.9428], abs=5e-5)
    assert signed.sum().item() == pytest.approx(0, abs=1e-14)


def test_a_clamp_that_acts_leaves_a_residual() -> None:
    rewards = [100.0] + [0.0] * 30  # A of the first is sqrt(30) = 5.48
    assert _weigh(AbsAdvantage, *rewards)[1].sum().item() == pytest.approx(0, abs=1e-12)
    residual = _weigh(AbsAdvantage, *rewards, clamp=5.0)[1].sum().item()
    assert residual == pytest.approx(5 - 30**0.5, abs=1e-3)


@pytest.mark.parametrize(("size", "acts"), [(26, False), (27, True)])
def test_the_default_clamp_acts_on_no_group_of_up_to_26(size: int, acts: bool) -> None:
    largest = _weigh(AbsAdvantage, 1e6, *[0.0] * (size - 1))[0].max().item()
    assert (largest > 5) is acts


def test_uniform_weighs_all_the_same() -> None:
    weights, signed = _weigh(Uniform, 10, 8, 5, 5, 5)
    assert weights.tolist() == [1, 1, 1, 1, 1]
    assert signed.tolist() == [1, 1, -1, -1, -1]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((1, 3, 2, 0), (0, 1, 0, -1)),
        ((3, 3, 0, 0), (1, 0, -1, 0)),
        ((0, 1, 0, 1), (-1, 1, 0, 0)),
        ((1, 0), (1, -1)),
    ],
)
def test_best_versus_worst_is_the_pair_and_the_first_of_ties(
    rewards: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert _weigh(BestVersusWorst, *rewards)[1].tolist() == list(expected)


def test_best_versus_worst_sees_through_a_clamp() -> None:
    _, signed = _weigh(BestVersusWorst, 50, 0, 51, 1, clamp=0.1)
    assert signed.tolist() == [0, -1, 1, 0]


@pytest.mark.parametrize("rewards", [(0.1,) * 3, (0.1,) * 7, (1.0,) * 24, (-3.3,), ()])
@pytest.mark.parametrize("weighting", [BestVersusWorst, Uniform, Rank, Softmax, Binary, TopK])
def test_a_group_without_preference_weighs_nothing(
    weighting: type[AdvantageWeighting], rewards: tuple[float, ...]
) -> None:
    r = torch.tensor(rewards, dtype=torch.float64)
    # Rounding of the mean keeps these off exact zeros in places; the weightings must not be fooled.
    weights = weighting(OPTIONS.get(weighting)).weights(r - r.sum() / max(len(r), 1) + 1e-17, r)
    assert weights.tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@given(rewards=groups)
def test_weights_are_float64_nonnegative_one_each(weighting: type[AdvantageWeighting], rewards: list[float]) -> None:
    weights, _ = _weigh(weighting, *rewards)
    assert weights.shape == (len(rewards),)
    assert weights.dtype == torch.float64
    assert (weights >= 0).all()


@pytest.mark.parametrize("weighting", [w for w in WEIGHTINGS if w.cancels_partition])
@given(rewards=st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=30))
def test_what_claims_to_cancel_the_partition_function_does(
    weighting: type[AdvantageWeighting], rewards: list[float]
) -> None:
    assert _weigh(weighting, *rewards)[1].sum().item() == pytest.approx(0, abs=1e-10)


def test_uniform_does_not_claim_to_cancel() -> None:
    assert not Uniform.cancels_partition
    assert _weigh(Uniform, 1, 0, 0, 0)[1].sum().item() == -2


@given(rewards=st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30))
def test_ranks_are_those_of_scipy(rewards: list[float]) -> None:
    places = stats.rankdata(rewards) - 1  # ties share the mean of their places
    expected = abs(2 * places - (len(rewards) - 1)) / (len(rewards) - 1)
    assert _weigh(Rank, *rewards)[0].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("temperature", [0.05, 0.5, 20.0])
@given(rewards=st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_softmax_within_each_side_is_scipys(temperature: float, rewards: list[float]) -> None:
    r = np.array(rewards)
    advantages = _advantages(torch.tensor(rewards, dtype=torch.float64)).numpy()
    weights = _weigh(Softmax, *rewards, options=SoftmaxOptions(temperature=temperature))[0].numpy()
    better = advantages > 0
    if r.min() == r.max() or not better.any() or better.all():
        assert not weights.any()
        return
    for side in (better, ~better):
        expected = special.softmax(np.abs(advantages[side]) / temperature) * len(r) / 2
        assert weights[side] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_softmax_lies_between_binary_and_the_extremes() -> None:
    rewards = (9.0, 5.0, 4.0, 1.0, 0.0)
    hot = _weigh(Softmax, *rewards, options=SoftmaxOptions(temperature=1e6))[1]
    assert hot.tolist() == pytest.approx(_weigh(Binary, *rewards)[1].tolist(), rel=1e-4)
    cold = _weigh(Softmax, *rewards, options=SoftmaxOptions(temperature=1e-3))[1]
    assert cold.tolist() == pytest.approx([2.5, 0, 0, 0, -2.5], abs=1e-6)


def test_binary_gives_both_sides_the_same() -> None:
    assert _weigh(Binary, 1, 0, 0, 0)[1].tolist() == pytest.approx([2, -2 / 3, -2 / 3, -2 / 3])


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1, 0, 0, 0, -1]), (2, [1, 1, 0, -1, -1]), (3, [1, 1, 0, -1, -1]), (99, [1, 1, 0, -1, -1])]
)
def test_top_k_is_cut_to_the_smaller_side(k: int, expected: list[float]) -> None:
    assert _weigh(TopK, 9, 8, 3, 2, 1, options=TopKOptions(k=k))[1].tolist() == expected  # mean 4.6: two above


@given(rewards=st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=20))
def test_top_1_is_best_versus_worst(rewards: list[float]) -> None:
    assert _weigh(TopK, *rewards, options=TopKOptions(k=1))[1].tolist() == _weigh(BestVersusWorst, *rewards)[1].tolist()


def test_clipped_bounds_the_papers_weights() -> None:
    weights = _weigh(Clipped, 10, 8, 5, 5, options=ClippedOptions(limit=0.5))[0]
    assert weights.tolist() == pytest.approx([0.5, 0.4714, 0.5, 0.5], abs=5e-5)


def test_a_group_of_small_range_is_dropped_as_a_whole() -> None:
    options = MinRangeOptions(smallest=0.5)
    assert not _weigh(MinRange, 0.2, 0.5, 0.69, options=options)[0].any()
    for rewards in ((0.25, 0.5, 0.75), (0.0, 1.0, 1.0)):
        assert torch.equal(_weigh(MinRange, *rewards, options=options)[0], _weigh(AbsAdvantage, *rewards)[0])


@given(rewards=groups)
def test_with_no_smallest_range_it_is_the_papers_weighting(rewards: list[float]) -> None:
    mine = _weigh(MinRange, *rewards, options=MinRangeOptions(smallest=0))[0]
    assert torch.equal(mine, _weigh(AbsAdvantage, *rewards)[0])


def test_concentrated_drops_those_far_from_the_mean() -> None:
    """Mean 3, standard deviation sqrt(10) = 3.16: only 9 is farther than 1.5 of them."""
    rewards = (9.0, 1.0, 2.0, 0.0, 3.0)
    weights = _weigh(Concentrated, *rewards, options=ConcentratedOptions(limit=1.5))[0]
    expected = [0.0, *(abs(r - 3) / (10**0.5 + 1e-4) for r in rewards[1:])]
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.5, 1.0, 1.5])
@given(rewards=st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_concentrated_keeps_what_scipys_z_scores_say(limit: float, rewards: list[float]) -> None:
    r = np.array(rewards)
    if r.std() < 1e-6:
        return
    z = np.abs(stats.zscore(r))
    kept = _weigh(Concentrated, *rewards, options=ConcentratedOptions(limit=limit))[0].numpy() > 0
    sure = np.abs(z - limit) > 1e-9
    paper = _weigh(AbsAdvantage, *rewards)[0].numpy() > 0
    assert (kept[sure] == ((z <= limit) & paper)[sure]).all()


@given(rewards=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
@example(rewards=[0.0, 3.7e-229])  # whose square is 0 in float64
def test_a_wide_limit_keeps_all(rewards: list[float]) -> None:
    mine = _weigh(Concentrated, *rewards, options=ConcentratedOptions(limit=30))[0]
    assert torch.equal(mine, _weigh(AbsAdvantage, *rewards)[0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@given(rewards=st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=20))
def test_balance_cancels_the_partition_function_and_keeps_the_total(
    weighting: type[AdvantageWeighting], rewards: list[float]
) -> None:
    r = torch.tensor([rewards], dtype=torch.float64)
    scored, advantages = torch.ones_like(r, dtype=torch.bool), _advantages(r[0])[None]
    made = weighting(OPTIONS.get(weighting))
    plain, balanced = (signed_weights(advantages, r, scored, made, balance=b) for b in (False, True))
    assert balanced.sum().item() == pytest.approx(0, abs=1e-9)
    if (plain > 0).any() and (plain < 0).any():
        assert balanced.abs().sum().item() == pytest.approx(plain.abs().sum().item())
        ratio = balanced[plain != 0] / plain[plain != 0]
        for side in (plain[plain != 0] > 0, plain[plain != 0] < 0):
            assert ratio[side].max().item() == pytest.approx(ratio[side].min().item())  # one factor a side
    else:
        assert not balanced.any()


def test_diverse_by_hand() -> None:
    """GARDO (arXiv 2512.24138): A_i * d_i / mean d for A_i > 0, with the distance to the nearest neighbor."""
    advantages = torch.tensor([1.0, 2.0, -1.0, -2.0]).double()
    distances = torch.tensor([[0, 3, 1, 5], [3, 0, 4, 4], [1, 4, 0, 6], [5, 4, 6, 0]]).double() / 10
    nearest = [0.1, 0.3, 0.1, 0.4]  # mean 0.225
    group = WeighedGroup(advantages, advantages, distances=distances)
    found = Diverse(None).group_weights(group)
    assert found.tolist() == pytest.approx([1 * nearest[0] / 0.225, 2 * nearest[1] / 0.225, 1, 2])
    assert not distances.diagonal().any(), "the arguments stay"


def test_diverse_keeps_good_samples_that_are_all_equal() -> None:
    """Else a group whose best members have collapsed would only push away."""
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    points = torch.tensor([0.0, 0.0, 0.3, 0.8]).double()
    distances = (points[:, None] - points[None]).abs()
    found = Diverse(None).group_weights(WeighedGroup(advantages, advantages, distances=distances))
    assert found.tolist() == [1, 1, 1, 1]


@given(groups, st.floats(1e-6, 1))
def test_diverse_without_differences_is_the_papers_weighting(rewards: list[float], distance: float) -> None:
    values = torch.tensor(rewards).double()
    advantages, n = _advantages(values), len(rewards)
    for distances in (None, torch.zeros(n, n).double(), distance * (1 - torch.eye(n)).double()):
        found = Diverse(None).group_weights(WeighedGroup(advantages, values, distances=distances))
        assert found.tolist() == pytest.approx(advantages.abs().tolist(), rel=1e-12)


def test_balanced_diverse_weights_cancel_and_missing_members_are_no_neighbors() -> None:
    rewards, scored = torch.tensor([[1.0, 0.2, 0.9, 0.0]]).double(), torch.tensor([[True, True, True, False]])
    points = torch.tensor([0.0, 0.5, 0.2, 0.01])  # the last one, nearest to the first, is not scored
    distances = (points[:, None] - points[None]).abs().double()[None]
    advantages = torch.tensor([[1.0, -1.5, 0.5, 0.0]]).double()
    plain = signed_weights(advantages, rewards, scored, Diverse(None), distances=distances)
    assert plain[0].tolist() == pytest.approx([1 * 0.2 / (0.7 / 3), -1.5, 0.5 * 0.2 / (0.7 / 3), 0])
    balanced = signed_weights(advantages, rewards, scored, Diverse(None), distances=distances, balance=True)
    assert abs(float(balanced.sum())) < 1e-12
    assert float(balanced[0, 0] / balanced[0, 2]) == pytest.approx(2)

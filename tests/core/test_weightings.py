"""Weightings against the paper's worked check and brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo_core.builtin.weightings import AbsAdvantage, BestVersusWorst, Uniform
from dgpo_core.contracts import AdvantageWeighting

WEIGHTINGS: list[type[AdvantageWeighting]] = [AbsAdvantage, BestVersusWorst, Uniform]
groups = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def _advantages(rewards: Tensor, clamp: float | None = None) -> Tensor:
    """(r - mean) / (population std + 1e-4)."""
    advantages = (rewards - rewards.mean()) / (rewards.var(unbiased=False).sqrt() + 1e-4)
    return advantages if clamp is None else advantages.clamp(-clamp, clamp)


def _weigh(weighting: type[AdvantageWeighting], *rewards: float, clamp: float | None = None) -> tuple[Tensor, Tensor]:
    """Weights, and signed weights as the engine makes them."""
    r = torch.tensor(rewards, dtype=torch.float64)
    advantages = _advantages(r, clamp)
    weights = weighting(None).weights(advantages, r)
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
@pytest.mark.parametrize("weighting", [BestVersusWorst, Uniform])
def test_a_group_without_preference_weighs_nothing(
    weighting: type[AdvantageWeighting], rewards: tuple[float, ...]
) -> None:
    r = torch.tensor(rewards, dtype=torch.float64)
    # Rounding of the mean keeps these off exact zeros in places; the weightings must not be fooled.
    weights = weighting(None).weights(r - r.sum() / max(len(r), 1) + 1e-17, r)
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

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo_core.builtin.weightings import AbsAdvantage, Uniform
from dgpo_core.contracts import AdvantageWeighting
from dgpo_core.errors import PluginError
from dgpo_core.flow.groups import advantages, informative, pairwise_distances, signed_weights
from dgpo_schemas.base import Options
from dgpo_schemas.sections.rewards import AdvantagesSection


def scored_like(rewards: Tensor) -> Tensor:
    return torch.ones(rewards.shape, dtype=torch.bool)


def test_worked_example() -> None:
    """ALGORITHM: rewards [10, 8, 5, 5] with the population std + 1e-4."""
    rewards = torch.tensor([[10.0, 8.0, 5.0, 5.0]], dtype=torch.float64)
    a = advantages(rewards, scored_like(rewards), AdvantagesSection())
    assert a[0].tolist() == pytest.approx([1.4141, 0.4714, -0.9428, -0.9428], abs=5e-5)
    assert float(a.sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_statistics_against_numpy(std: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 7))
    present = rng.random((5, 7)) > 0.2
    section = AdvantagesSection(std=std, clamp=100.0, epsilon=1e-4)
    found = advantages(torch.tensor(values), torch.tensor(present), section)
    for g in range(5):
        mine = values[g][present[g]]
        scale = {"group": mine.std() + 1e-4, "batch": values[present].std() + 1e-4, "none": 1.0}[std]
        assert found[g][torch.tensor(present[g])].numpy() == pytest.approx((mine - mine.mean()) / scale, abs=1e-12)
        assert (found[g][~torch.tensor(present[g])] == 0).all()


def test_clamp() -> None:
    rewards = torch.zeros(1, 64, dtype=torch.float64)
    rewards[0, 0] = 1
    a = advantages(rewards, scored_like(rewards), AdvantagesSection(clamp=5.0))
    assert float(a.max()) == 5.0
    assert float(advantages(rewards, scored_like(rewards), AdvantagesSection(clamp=50.0)).max()) > 5.0


@given(st.floats(-1e6, 1e6), st.integers(2, 40))
def test_equal_rewards_say_exactly_nothing(value: float, members: int) -> None:
    """A mean of equal numbers may differ from them by rounding; that must not become an advantage or a weight."""
    rewards = torch.full((1, members), value, dtype=torch.float64)
    a = advantages(rewards, scored_like(rewards), AdvantagesSection())
    assert not informative(rewards, scored_like(rewards)).any()
    assert (a == 0).all()
    assert (signed_weights(a, rewards, scored_like(rewards), Uniform(Options())) == 0).all()


def test_a_group_with_one_scored_member_is_left_out() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    scored = torch.tensor([[True, False, False]])
    assert (advantages(rewards, scored, AdvantagesSection()) == 0).all()


def test_sign_rule() -> None:
    """G- is A <= 0: a member exactly at the mean is pushed down by a weighting that gives it weight."""
    rewards = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    a = advantages(rewards, scored_like(rewards), AdvantagesSection())
    assert signed_weights(a, rewards, scored_like(rewards), Uniform(Options())).tolist() == [[-1.0, -1.0, 1.0]]
    assert torch.equal(signed_weights(a, rewards, scored_like(rewards), AbsAdvantage(Options())), a)


@pytest.mark.parametrize("bad", ["shape", "negative", "nan"])
def test_a_weighting_that_breaks_its_contract_is_named(bad: str) -> None:
    class Broken(AdvantageWeighting):
        def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
            return {
                "shape": torch.ones(1, dtype=torch.float64),
                "negative": -torch.ones_like(advantages),
                "nan": advantages * torch.nan,
            }[bad]

    rewards = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    a = advantages(rewards, scored_like(rewards), AdvantagesSection())
    with pytest.raises(PluginError, match="Broken must return one finite weight >= 0 per member"):
        signed_weights(a, rewards, scored_like(rewards), Broken(Options()))


def test_pairwise_distances_by_hand() -> None:
    features = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])
    distances, mean = pairwise_distances(features)
    assert float(mean) == pytest.approx((5 + 5 + 0) / 3 / 2**0.5)
    assert distances.flatten().tolist() == pytest.approx([d / 2**0.5 for d in (0, 5, 0, 5, 0, 5, 0, 5, 0)])
    assert float(pairwise_distances(torch.ones(1, 4, 9))[1]) == 0.0
    assert float(pairwise_distances(torch.ones(1, 1, 9))[1]) == 0.0

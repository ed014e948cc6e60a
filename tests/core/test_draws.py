from __future__ import annotations

import torch

from dgpo_core.draws import Draws, normal_rows


def test_a_key_repeats_itself_whatever_happened_before() -> None:
    first = Draws(1).at("rollout", 3).normal((4,))
    torch.manual_seed(99)
    torch.randn(10)
    assert torch.equal(Draws(1).at("rollout").at(3).normal((4,)), first)


def test_keys_differ_in_every_component_and_type() -> None:
    keys = [Draws(1), Draws(2), Draws(1).at(1), Draws(1).at("1"), Draws(1).at(1, 1), Draws(1).at(11)]
    drawn = [k.normal((8,)) for k in keys]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_global_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    Draws(1).normal((3,))
    Draws(1).uniform(3)
    Draws(1).permutation(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_do_not_depend_on_how_they_are_split() -> None:
    keys = [Draws(5).at(i) for i in range(7)]
    whole = normal_rows(keys, (2, 3), "cpu")
    assert torch.equal(torch.cat([normal_rows(keys[:3], (2, 3), "cpu"), normal_rows(keys[3:], (2, 3), "cpu")]), whole)


def test_distributions() -> None:
    noise = normal_rows([Draws(0).at(i) for i in range(2000)], (16,), "cpu")
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    # Rows of neighboring keys are independent: their correlation matrix is the identity, up to sampling error.
    assert float(torch.corrcoef(noise.T).fill_diagonal_(0).abs().max()) < 0.1
    uniform = Draws(0).uniform(4000)
    assert uniform.dtype == torch.float64
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert Draws(0).permutation(9).sort().values.tolist() == list(range(9))

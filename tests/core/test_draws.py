from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.draws import CHUNK, Draws, fill_normal, normal_rows


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


class OnCard(Tensor):
    """A tensor on a card with some multiprocessors, whose `normal_` notes which number each element would get.

    As torch's kernel does (aten/src/ATen/native/cuda/DistributionTemplates.h): blocks of 256 threads, at most as many
    as fit on the card; in each round, each thread takes the next 4 numbers of its Philox stream, for elements that are
    as far from each other as there are threads. The generator then skips the numbers that any thread took.
    """

    blocks: int  # that the card holds at once
    skipped: int

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def normal_(self, *, generator: Any) -> Tensor:  # type: ignore[override]
        threads = 256 * min(OnCard.blocks, -(-self.numel() // 256))
        element = torch.arange(self.numel())
        taken = element // threads  # by the same thread, before this one
        torch.Tensor.copy_(self.as_subclass(Tensor), (element % threads) * 2**20 + OnCard.skipped + taken)
        OnCard.skipped += 4 * (1 + (self.numel() - 1) // (4 * threads))
        return self


def drawn_on(blocks: int, count: int, *, whole: bool = False) -> Tensor:
    OnCard.blocks, OnCard.skipped = blocks, 0
    out = torch.zeros(count, dtype=torch.float64).as_subclass(OnCard)
    generator = torch.Generator()
    return (out.normal_(generator=generator) if whole else fill_normal(out, generator)).as_subclass(Tensor)


CARDS = {"rtx-3060": 28 * 6, "t4": 40 * 4, "l4": 58 * 6, "a100": 108 * 8, "h200": 132 * 8, "b200": 148 * 8}
"""Multiprocessors, times the blocks of 256 threads that one holds."""


@pytest.mark.parametrize("count", [100, CHUNK, CHUNK + 1, 16 * 128 * 128, 16 * 5 * 60 * 104 + 3])
def test_noise_on_cuda_does_not_depend_on_the_card(count: int) -> None:
    on_cards = [drawn_on(blocks, count) for blocks in CARDS.values()]
    assert all(torch.equal(a, b) for a, b in pairwise(on_cards))
    assert len(on_cards[0].unique()) == count  # no number is used twice


def test_noise_drawn_at_once_would_depend_on_the_card() -> None:
    """What the test above relies on."""
    count = 16 * 128 * 128
    assert not torch.equal(drawn_on(CARDS["a100"], count, whole=True), drawn_on(CARDS["t4"], count, whole=True))


def test_noise_on_the_cpu_is_drawn_at_once() -> None:
    for shape in ((3,), (5, 7), (2, CHUNK + 5)):
        given = torch.randn(shape, generator=Draws(1).at("x").generator())
        assert torch.equal(Draws(1).at("x").normal(shape), given)
        assert torch.equal(normal_rows([Draws(1).at("x")], shape, "cpu")[0], given)


def test_a_single_size_is_a_shape() -> None:
    draws = Draws(3).at("x")
    assert torch.equal(draws.normal(6), draws.normal((6,)))
    assert torch.equal(draws.uniform(6), draws.uniform((6,)))
    assert torch.equal(draws.uniform((2, 3)).flatten(), draws.uniform(6))

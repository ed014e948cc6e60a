"""Weightings: finite weights >= 0, one a member, whatever the members' order."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting
from dgpo_kit.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_weighting", "weighting_checks"]

SIZES = (2, 3, 8, 24)


def check_weighting(weighting: AdvantageWeighting, sizes: Sequence[int] = SIZES) -> None:
    """Finite weights >= 0, whatever the order of the members; a cancelling partition function if it declares one."""
    run_all(weighting_checks(lambda: weighting, sizes))


def weighting_checks(make: Callable[[], AdvantageWeighting], sizes: Sequence[int] = SIZES) -> Iterator[Check]:
    """What a weighting promises, each for groups of `sizes` members, with and without ties."""

    @cache
    def subject() -> list[_Group]:
        weighting = make()
        return [_Group(weighting, size, tied) for size, tied in product(sizes, (False, True))]

    return checks_of(subject, weights, determinism, untouched, partition, order, random_state)


@dataclass(frozen=True)
class _Group:
    """A group of so many members; `tied` gives half of them one reward."""

    weighting: AdvantageWeighting
    size: int
    tied: bool

    def members(self) -> tuple[Tensor, Tensor]:
        """Advantages and rewards, float64 [G]."""
        rewards = normal(self.size, seed=self.size).double()
        if self.tied:
            rewards[: self.size // 2] = rewards[0]
        return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4), rewards

    def weights(self) -> Tensor:
        return self.weighting.weights(*self.members())


def weights(groups: Sequence[_Group]) -> None:
    """[G], finite and never negative: the engine signs them."""
    for group in groups:
        found, size = group.weights(), group.size
        that(found.shape == (size,), f"there is one weight a member: [{size}], not {list(found.shape)}")
        that(bool((found.isfinite() & (found >= 0)).all()), f"weights are finite and >= 0: {found.tolist()}")


def determinism(groups: Sequence[_Group]) -> None:
    """Nothing but advantages and rewards decides."""
    for group in groups:
        equal(group.weights(), group.weights(), "weights are the same every time")


def untouched(groups: Sequence[_Group]) -> None:
    """Arguments are the engine's."""
    for group in groups:
        advantages, rewards = group.members()
        group.weighting.weights(advantages, rewards)
        equal(torch.stack((advantages, rewards)), torch.stack(group.members()), "advantages and rewards are left alone")


def partition(groups: Sequence[_Group]) -> None:
    """What `cancels_partition` says."""
    for group in groups:
        if not group.weighting.cancels_partition:
            raise unittest.SkipTest("it does not declare `cancels_partition`")
        advantages, _ = group.members()
        signed = torch.where(advantages > 0, group.weights(), -group.weights())
        close(signed.sum(), torch.zeros(()).double(), "signed weights sum to 0 in every group", 1e-9)


def order(groups: Sequence[_Group]) -> None:
    """Members have no order."""
    for group in groups:
        if group.tied:
            continue  # which of two equal members comes first may decide
        advantages, rewards = group.members()
        shuffled = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.size))
        moved = group.weighting.weights(advantages[shuffled], rewards[shuffled])
        close(moved, group.weights()[shuffled], "a member keeps its weight whatever its place", 1e-12)


def random_state(groups: Sequence[_Group]) -> None:
    """Weights are not drawn."""
    for group in groups:
        with global_state_left_alone("a weighting"):
            group.weights()

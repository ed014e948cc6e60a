"""Checks of weightings: one finite weight >= 0 per member, independent of the members' order."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, WeighedGroup
from dgpo_kit.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_weighting", "weighting_checks"]

SIZES = (2, 3, 8, 24)


def check_weighting(weighting: AdvantageWeighting, sizes: Sequence[int] = SIZES) -> None:
    """Check that weights are finite and >= 0, do not depend on the order of the members, and, with `cancels_partition`,
    that signed weights sum to 0. Raises AssertionError at the first violation."""
    run_all(weighting_checks(lambda: weighting, sizes))


def weighting_checks(make: Callable[[], AdvantageWeighting], sizes: Sequence[int] = SIZES) -> Iterator[Check]:
    """Yield the checks of a weighting; each covers groups of `sizes` members, with and without ties."""

    @cache
    def subject() -> list[_Group]:
        weighting = make()
        return [_Group(weighting, size, tied) for size, tied in product(sizes, (False, True))]

    return checks_of(subject, weights, determinism, untouched, partition, order, random_state)


@dataclass(frozen=True)
class _Group:
    """A group of `size` members; with `tied`, half of them have the same reward."""

    weighting: AdvantageWeighting
    size: int
    tied: bool

    def members(self) -> WeighedGroup:
        """Return the group as the engine passes it: two rewards, and the distances of points in a plane."""
        rewards = normal(self.size, seed=self.size).double()
        if self.tied:
            rewards[: self.size // 2] = rewards[0]
        media = normal(self.size, 2, seed=self.size + 1).double()
        return WeighedGroup(
            advantages=(rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4),
            rewards=rewards,
            per_reward={"first": rewards, "second": rewards.square()},
            distances=(media[:, None] - media[None]).square().mean(2).sqrt().clamp(max=1.0),
        )

    def weights(self) -> Tensor:
        return self.weighting.group_weights(self.members())


def weights(groups: Sequence[_Group]) -> None:
    """Weights are [G], finite and >= 0; the engine adds the sign."""
    for group in groups:
        found, size = group.weights(), group.size
        that(found.shape == (size,), f"weights must have shape [G] [{size}], got {list(found.shape)}")
        valid = bool((found.isfinite() & (found >= 0)).all())
        that(valid, f"weights must be finite and >= 0, got {found.tolist()}")


def determinism(groups: Sequence[_Group]) -> None:
    """Weights depend on the group alone."""
    for group in groups:
        equal(group.weights(), group.weights(), "weights must be deterministic")


def untouched(groups: Sequence[_Group]) -> None:
    """The arguments are not modified; they belong to the engine."""
    for group in groups:
        passed, expected = group.members(), group.members()
        group.weighting.group_weights(passed)
        equal(_flat(passed), _flat(expected), "advantages, rewards and distances must not be modified")


def partition(groups: Sequence[_Group]) -> None:
    """With `cancels_partition`, signed weights sum to 0."""
    for group in groups:
        if not group.weighting.cancels_partition:
            raise unittest.SkipTest("the weighting does not declare `cancels_partition`")
        signed = torch.where(group.members().advantages > 0, group.weights(), -group.weights())
        close(signed.sum(), torch.zeros(()).double(), "signed weights must sum to 0 in every group", 1e-9)


def order(groups: Sequence[_Group]) -> None:
    """Weights do not depend on the order of the members."""
    for group in groups:
        if group.tied:
            continue  # the order may decide between members with equal rewards
        members = group.members()
        shuffled = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.size))
        moved = group.weighting.group_weights(
            WeighedGroup(
                members.advantages[shuffled],
                members.rewards[shuffled],
                {label: values[shuffled] for label, values in members.per_reward.items()},
                None if members.distances is None else members.distances[shuffled][:, shuffled],
            )
        )
        close(moved, group.weights()[shuffled], "weights must not depend on the order of the members", 1e-12)


def random_state(groups: Sequence[_Group]) -> None:
    """Weights do not use a global random generator."""
    for group in groups:
        with global_state_left_alone("a weighting"):
            group.weights()


def _flat(group: WeighedGroup) -> Tensor:
    """Return all numbers of a group."""
    assert group.distances is not None
    return torch.cat([group.advantages, group.rewards, *group.per_reward.values(), group.distances.flatten()])

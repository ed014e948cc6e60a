"""How strongly each member of a group counts: advantages and rewards to weights w >= 0.

The engine signs them: c = +w where A > 0, else -w. The partition function cancels where a group's c sum to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting

__all__ = ["AbsAdvantage", "BestVersusWorst", "Binary", "Clipped", "Rank", "Softmax", "TopK", "Uniform"]


class AbsAdvantage(AdvantageWeighting):
    """w = |A|, so that c = A (DGPO, arXiv 2510.08425): members far from the mean count more.

    Advantages are centered on the group's mean, so the c sum to 0 up to rounding, unless a clamp acted: a clamped
    advantage leaves a residual, which the engine reports. Divided by the population std of their own group,
    advantages stay within sqrt(G - 1), so the default clamp of 5 acts on no group of up to 26.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """|A|, float64 [G]."""
        return advantages.abs()


class Uniform(AdvantageWeighting):
    """w = 1: every better-than-average member counts the same, and so does every other.

    The c sum to |G+| - |G-|, which is not 0 in general: the partition function does not cancel. Where all rewards are
    equal there is no preference to learn and w = 0 (with w = 1 a group of perfect samples would be pushed away).
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Ones [G], or zeros where all rewards are equal; float64."""
        return torch.ones_like(advantages) if _has_preference(rewards) else torch.zeros_like(advantages)


class BestVersusWorst(AdvantageWeighting):
    """w = 1 on the best and on the worst member, 0 elsewhere: the pairwise Diffusion-DPO (arXiv 2311.12908) loss.

    Chosen by reward (a clamp may tie advantages), ties by the lower index. Where all rewards are equal, w = 0.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Two ones and G - 2 zeros, or zeros where all rewards are equal; float64 [G]."""
        weights = torch.zeros_like(advantages)
        if _has_preference(rewards):
            weights[rewards.argmax()] = 1.0  # of equal values argmax and argmin return the first
            weights[rewards.argmin()] = 1.0
        return weights


class Rank(AdvantageWeighting):
    """w = |2 rank - (G - 1)| / (G - 1): how far a member's place is from the middle of its group.

    rank 0 is the worst, G - 1 the best; equal rewards share the mean of their places; distances do not count. The sign
    is still that of A, the distance from the mean: where mean and median lie apart, a member between them counts
    against its place, and the c do not sum to 0. `advantages.balance` makes them.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """In [0, 1], float64 [G]; zeros where all rewards are equal."""
        last = len(rewards) - 1
        below = (rewards[None, :] < rewards[:, None]).sum(1)
        ties = (rewards[None, :] == rewards[:, None]).sum(1) - 1
        return (2 * below + ties - last).abs().to(advantages) / max(last, 1)


class Softmax(AdvantageWeighting):
    """w = G/2 * softmax(|A| / temperature) within each side: members far from the mean draw the weight to them.

    A high temperature approaches `binary`, a low one `best-vs-worst`. Each side sums to G/2: the partition cancels.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Float64 [G], each side sums to G/2; zeros where all rewards are equal."""
        return _each_side(advantages, rewards, lambda side: (side.abs() / self.options.temperature).softmax(0))


class Binary(AdvantageWeighting):
    """w = G / (2 |side|): both sides count the same, and so do all members of a side. The partition cancels."""

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Float64 [G], each side sums to G/2; zeros where all rewards are equal."""
        return _each_side(advantages, rewards, lambda side: torch.full_like(side, 1 / len(side)))


class TopK(AdvantageWeighting):
    """w = 1 on the k best and the k worst members, 0 elsewhere; k = 1 is `best-vs-worst`.

    k is cut to the smaller side, so that the best are all above the mean and the partition cancels. Ties go to the
    lower index.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """2k ones and G - 2k zeros, or zeros where all rewards are equal; float64 [G]."""
        weights = torch.zeros_like(advantages)
        if _has_preference(rewards):
            better = int((advantages > 0).sum())
            k = min(self.options.k, better, len(rewards) - better)
            order = rewards.argsort(stable=True)
            best = rewards.argsort(stable=True, descending=True)
            weights[order[:k]] = weights[best[:k]] = 1.0
        return weights


class Clipped(AdvantageWeighting):
    """w = min(|A|, limit): the paper's weighting with the influence of outliers bounded.

    A member that is clipped leaves a residual in its group; `advantages.balance` takes it away.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """In [0, limit], float64 [G]."""
        return advantages.abs().clamp(max=self.options.limit)


def _each_side(advantages: Tensor, rewards: Tensor, share: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights that sum to G/2 on each side, shared out within it; zeros where one side is empty."""
    weights = torch.zeros_like(advantages)
    better = advantages > 0
    if _has_preference(rewards) and 0 < int(better.sum()) < len(better):
        for side in (better, ~better):
            weights[side] = share(advantages[side]) * (len(advantages) / 2)
    return weights


def _has_preference(rewards: Tensor) -> bool:
    """Whether any two rewards differ; asked of the rewards because a mean's rounding may keep advantages off 0."""
    return len(rewards) > 0 and bool(rewards.min() < rewards.max())

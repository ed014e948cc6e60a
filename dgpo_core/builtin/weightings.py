"""Advantage weightings: compute weights w >= 0 from the advantages and rewards of a group.

The engine adds the sign: c = +w where A > 0, otherwise -w. The partition function cancels if c sums to 0 in a group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, WeighedGroup

__all__ = [
    "AbsAdvantage", "BestVersusWorst", "Binary", "Clipped", "Concentrated", "Diverse", "MinRange", "Rank", "Softmax",
    "TopK", "Uniform",
]  # fmt: skip


class AbsAdvantage(AdvantageWeighting):
    """w = |A|, so that c = A (DGPO, arXiv 2510.08425): members far from the mean have larger weights.

    Advantages are centered on the group mean, so that c sums to 0 up to rounding, unless advantages were clamped: a
    clamped advantage leaves a residual, which the engine reports. Advantages normalized by the group's population std
    are at most sqrt(G - 1) in magnitude, so the default clamp of 5 has no effect for G up to 26.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return |A|, float64 [G]."""
        return advantages.abs()


class Uniform(AdvantageWeighting):
    """w = 1 for every member.

    c sums to |G+| - |G-|, in general not 0, so the partition function does not cancel. w = 0 if all rewards are equal:
    such a group has no preference, and w = 1 would push a group of perfect samples away.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return ones [G], or zeros if all rewards are equal; float64."""
        return torch.ones_like(advantages) if _has_preference(rewards) else torch.zeros_like(advantages)


class BestVersusWorst(AdvantageWeighting):
    """w = 1 for the best and the worst member, 0 elsewhere: the pairwise Diffusion-DPO (arXiv 2311.12908) loss.

    Selected by reward, because clamping can tie advantages; the lower index wins ties. w = 0 if all rewards are equal.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return two ones and G - 2 zeros, or all zeros if all rewards are equal; float64 [G]."""
        weights = torch.zeros_like(advantages)
        if _has_preference(rewards):
            weights[rewards.argmax()] = 1.0  # argmax and argmin return the first of equal values
            weights[rewards.argmin()] = 1.0
        return weights


class Rank(AdvantageWeighting):
    """w = |2 rank - (G - 1)| / (G - 1): the distance of a member's rank from the middle of its group.

    rank 0 is the worst, G - 1 the best; equal rewards have their mean rank. Differences between rewards do not matter.
    The sign of c is that of A, relative to the mean: if mean and median differ, a member between them has a sign
    opposite to its rank, and c does not sum to 0. Set `advantages.balance` to balance the sides.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return weights in [0, 1], float64 [G]; zeros if all rewards are equal."""
        last = len(rewards) - 1
        below = (rewards[None, :] < rewards[:, None]).sum(1)
        ties = (rewards[None, :] == rewards[:, None]).sum(1) - 1
        return (2 * below + ties - last).abs().to(advantages) / max(last, 1)


class Softmax(AdvantageWeighting):
    """w = G/2 * softmax(|A| / temperature) within each side, A > 0 and A <= 0.

    A high temperature approaches `binary`, a low one `best-vs-worst`. Each side sums to G/2, so that the partition
    function cancels.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return float64 [G], each side sums to G/2; zeros if all rewards are equal."""
        return _each_side(advantages, rewards, lambda side: (side.abs() / self.options.temperature).softmax(0))


class Binary(AdvantageWeighting):
    """w = G / (2 |side|): equal weights within a side, equal sums of both sides. The partition function cancels."""

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return float64 [G], each side sums to G/2; zeros if all rewards are equal."""
        return _each_side(advantages, rewards, lambda side: torch.full_like(side, 1 / len(side)))


class TopK(AdvantageWeighting):
    """w = 1 for the k best and the k worst members, 0 elsewhere; k = 1 is `best-vs-worst`.

    k is limited by the size of the smaller side, so that the best members are above the mean and the partition function
    cancels. The lower index wins ties.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return 2k ones and G - 2k zeros, or all zeros if all rewards are equal; float64 [G]."""
        weights = torch.zeros_like(advantages)
        if _has_preference(rewards):
            better = int((advantages > 0).sum())
            k = min(self.options.k, better, len(rewards) - better)
            order = rewards.argsort(stable=True)
            best = rewards.argsort(stable=True, descending=True)
            weights[order[:k]] = weights[best[:k]] = 1.0
        return weights


class Clipped(AdvantageWeighting):
    """w = min(|A|, limit): the paper's weighting with bounded influence of outliers.

    A clipped member leaves a residual in its group; `advantages.balance` removes it.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return weights in [0, limit], float64 [G]."""
        return advantages.abs().clamp(max=self.options.limit)


class MinRange(AdvantageWeighting):
    """w = |A| in groups whose rewards span at least `smallest`, 0 in all others: range filtering of prompts.

    Advantages that are divided by the group's standard deviation give a group whose rewards hardly differ the same
    weight as any other. Source: Qwen-Image-2.0-RL (arXiv 2606.27608), which drops prompts by max r - min r; here their
    groups are dropped, and not drawn again. With a range of 0, it is `abs-advantage`.
    """

    cancels_partition = True

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return |A| or zeros, float64 [G]."""
        return advantages.abs() * (rewards.max() - rewards.min() >= self.options.smallest) if len(rewards) else rewards


class Concentrated(AdvantageWeighting):
    """w = |A| for members whose reward is within `limit` standard deviations of the group's mean, 0 for others.

    Source: DRIFT (arXiv 2601.12401), which keeps the concentrated members of a group; `top-k` keeps the extreme ones.
    Dropped members leave a residual in their group; `advantages.balance` removes it. With a limit of at least
    sqrt(G - 1), no member is farther away, and it is `abs-advantage`.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return |A| or 0 for each member, float64 [G]."""
        distance = (rewards - rewards.mean()).abs()
        smallest = torch.finfo(distance.dtype).smallest_normal
        distance = distance / distance.max().clamp(min=smallest)  # their squares must not become 0
        near: Tensor = distance <= self.options.limit * distance.square().mean().sqrt()
        return advantages.abs() * near


class Diverse(AdvantageWeighting):
    """w = |A|, for members above the mean times d / mean d, where d is the distance of a member's media to the nearest
    other one of its group: among good samples, those unlike the others count more, which works against mode collapse.

    Source: GARDO (arXiv 2512.24138), whose d is the cosine distance of DINOv3 features; here it is the
    root-mean-square difference of downscaled media, which needs no model. Only advantages above 0 change, so that an
    odd sample is never rewarded for being odd alone. Their scaling leaves a residual; `advantages.balance` removes it.
    If all distances are equal, or each member above the mean has an equal one, it is `abs-advantage`.
    """

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return |A|, float64 [G]: without media all members are alike."""
        return advantages.abs()

    def group_weights(self, group: WeighedGroup) -> Tensor:
        """Return |A|, scaled above the mean, float64 [G]."""
        weights = self.weights(group.advantages, group.rewards)
        if group.distances is None or len(weights) < 2:
            return weights
        own = torch.eye(len(weights), dtype=torch.bool)
        nearest = group.distances.masked_fill(own, torch.inf).amin(1)
        better = group.advantages > 0
        if not nearest[better].any():
            return weights
        return torch.where(better, weights * (nearest / nearest.mean()), weights)


def _each_side(advantages: Tensor, rewards: Tensor, distribution: Callable[[Tensor], Tensor]) -> Tensor:
    """Return weights that sum to G/2 on each side, split by `distribution`; zeros if one side is empty."""
    weights = torch.zeros_like(advantages)
    better = advantages > 0
    if _has_preference(rewards) and 0 < int(better.sum()) < len(better):
        for side in (better, ~better):
            weights[side] = distribution(advantages[side]) * (len(advantages) / 2)
    return weights


def _has_preference(rewards: Tensor) -> bool:
    """Whether the rewards are not all equal. Rounding of the mean can make advantages of equal rewards nonzero."""
    return len(rewards) > 0 and bool(rewards.min() < rewards.max())

"""How strongly each member of a group counts: advantages and rewards to weights w >= 0.

The engine signs them: c = +w where A > 0, else -w. The partition function cancels where a group's c sum to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting

__all__ = ["AbsAdvantage", "BestVersusWorst", "Uniform"]


class AbsAdvantage(AdvantageWeighting):
    """w = |A|, so that c = A (DGPO, arXiv 2510.08425): members far from the mean count more.

    Advantages are centred on the group's mean, so the c sum to 0 up to rounding, unless a clamp acted: a clamped
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


def _has_preference(rewards: Tensor) -> bool:
    """Whether any two rewards differ; asked of the rewards because a mean's rounding may keep advantages off 0."""
    return len(rewards) > 0 and bool(rewards.min() < rewards.max())

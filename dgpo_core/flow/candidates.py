"""Choose the members of groups among more candidates, and the keys of their noise.

g groups, N candidates and G members per group; rewards float64 [g, N], scored bool [g, N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo_core.draws import Draws

__all__ = ["ChosenDraws", "extremes", "rank_correlation"]


def extremes(rewards: Tensor, scored: Tensor, best: int, worst: int) -> Tensor:
    """Return the candidates with the `best` highest and the `worst` lowest rewards: int64 [g, best + worst], ascending.

    Of equal rewards, those of earlier candidates count as higher. Candidates that are not scored are chosen, the first
    ones, only where too few are scored. best + worst is at most N.
    """
    order = rewards.masked_fill(~scored, -torch.inf).argsort(dim=1, descending=True, stable=True)
    end = scored.sum(1, keepdim=True).clamp(min=best + worst)
    places = torch.cat([torch.arange(best).expand(len(order), -1), end - worst + torch.arange(worst)], 1)
    return order.gather(1, places).sort(1).values


@dataclass(frozen=True, slots=True)
class ChosenDraws:
    """Random keys of groups whose members were chosen: those that they had as candidates.

    draws: extended by group and candidate; candidates: the number of each member as a candidate, by group.
    """

    draws: Draws
    candidates: Sequence[Sequence[int]]

    def at(self, group: int, member: int, /) -> Draws:
        """Return the key of a member."""
        return self.draws.at(group, self.candidates[group][member])


def rank_correlation(first: Tensor, second: Tensor, scored: Tensor) -> Tensor:
    """Return Spearman's rank correlation [g] of two rewards of the scored members of groups, all [g, G].

    Equal values share their ranks; nan for a group in which all values of one are equal.
    """
    a, b = (_centered_ranks(values, scored) for values in (first, second))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _centered_ranks(values: Tensor, scored: Tensor) -> Tensor:
    """Return the ranks [g, G] minus their mean, times 2, which are whole numbers; 0 where not scored."""
    others = scored[:, None, :]
    below = ((values[:, None, :] < values[:, :, None]) & others).sum(2)
    above = ((values[:, None, :] > values[:, :, None]) & others).sum(2)
    return (below - above).masked_fill(~scored, 0).to(torch.float64)

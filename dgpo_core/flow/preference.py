"""The group preference of DGPO (arXiv 2510.08425): pure functions of errors [B] of members of groups.

S_g = (beta / G) * sum_i c_i * (dsm_i - dsm_ref_i) and L_g = -log sigmoid(-S_g), divided by beta. Written in the
authors' gradient-equivalent form: stopgrad(sigmoid(S_g)) * c_i * dsm_i, averaged over the group, has the gradient of
L_g / beta. Dividing by beta keeps the step size independent of it.

Legend: g groups, G members, B members in a batch; dsm: squared error of a velocity [B]; c: signed weights [B].
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_means", "group_sums", "outside_clip", "preference_terms", "statistic_shares", "with_kl"]


def statistic_shares(
    dsm: Tensor, dsm_reference: Tensor, signed_weights: Tensor, group_size: Tensor, beta: float
) -> Tensor:
    """Each member's share [B] of its group's S_g; group_size [B]: scored members of its group."""
    return beta / group_size * signed_weights * (dsm - dsm_reference)


def group_sums(split_samples: Tensor, same_group: Tensor) -> Tensor:
    """The sum over its group for every member, [B]; same_group [B, B]: 1 where two members belong to one group.

    A product, because a scattered sum is not deterministic on CUDA.
    """
    return same_group @ split_samples


def outside_clip(dsm: Tensor, dsm_old: Tensor, better: Tensor, clip: float) -> Tensor:
    """Members, bool [B], whose ratio exp(dsm_old - dsm) left [1 - clip, 1 + clip] in the direction in which they are
    already pushed; better: bool [B], those with a positive advantage."""
    ratio = (dsm_old - dsm.detach()).exp()
    return torch.where(better, ratio > 1 + clip, ratio < 1 - clip)


def preference_terms(
    dsm: Tensor, signed_weights: Tensor, statistic: Tensor, clipped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss [B] with gradient, sigmoid(S_g) [B]); statistic: S_g of each member's group, without gradient. A clipped
    member gives no gradient."""
    scale = torch.sigmoid(statistic)
    moving = dsm if clipped is None else torch.where(clipped, dsm.detach(), dsm)
    return scale * signed_weights * moving, scale


def with_kl(loss: Tensor, kl: Tensor, weight: float | Tensor, silenced: Tensor | None = None) -> Tensor:
    """The loss [B] with the KL term: weight * kl [B], the squared distance from the base model's velocity; weight: a
    number or [B]. Members that are silenced, bool [B], give no gradient of it."""
    if silenced is not None:
        kl = torch.where(silenced, kl.detach(), kl)
    return loss + weight * kl


def group_means(loss: Tensor, group_size: Tensor, count: int) -> Tensor:
    """A step's loss []: the mean over a group's scored members, of `count` groups (times timesteps)."""
    return (loss / group_size).sum() / count

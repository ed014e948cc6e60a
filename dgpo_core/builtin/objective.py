"""Direct Group Preference Optimization (arXiv 2510.08425), all three published modes."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.types import Predictions

__all__ = ["DirectGroupPreference"]


class DirectGroupPreference(Objective):
    """L_g = -log sigmoid(-S_g) with S_g = (beta / G) * sum_i c_i * (dsm_i - dsm_ref_i), divided by beta.

    Written in the authors' gradient-equivalent form: stopgrad(sigmoid(S_g)) * c_i * dsm_i, averaged over the group,
    has the gradient of L_g / beta. Dividing by beta keeps the step size independent of it.
    PPO-style clip: a member whose ratio exp(dsm_old - dsm) left [1 - clip, 1 + clip] in the direction in which it is
    already pushed stops giving gradient, but its value still counts in S_g. KL: kl * mean (v - v_base)^2, against the
    frozen base model also where S_g compares with the fast EMA (the authors' code; mode 2b).
    """

    needs_statistic = True

    @property
    def needs_reference(self) -> bool:
        """Always: S_g compares with the reference."""
        return True

    @property
    def needs_base(self) -> bool:
        """Only the KL term compares with the base."""
        return self.section.kl > 0

    @property
    def needs_old(self) -> bool:
        """Only the clip looks at the old policy."""
        return self.section.clip is not None

    @property
    def skips_zero_weights(self) -> bool:
        """A member with c_i = 0 adds nothing to S_g; only a KL term would still pull on it."""
        return self.section.kl == 0

    def statistic(self, predictions: Predictions) -> Tensor:
        """Shares of S_g, [B]."""
        p = predictions
        assert p.reference is not None
        gap = p.error(p.velocity.detach(), p.target) - p.error(p.reference, p.target)
        return self.section.beta / p.group_size * p.signed_weights * gap

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B]; `statistic` is S_g of each member's group."""
        p = predictions
        assert p.reference is not None
        assert statistic is not None
        dsm = p.error(p.velocity, p.target)
        scale = torch.sigmoid(statistic)
        metrics = {
            "dsm": dsm.detach(),
            "dsm_reference": p.error(p.reference, p.target),
            "sigmoid": scale,
        }
        moving = dsm
        clipped = None
        if self.section.clip is not None:
            assert p.old is not None
            ratio = (p.error(p.old, p.target) - dsm.detach()).exp()
            up = p.advantages > 0
            clipped = torch.where(up, ratio > 1 + self.section.clip, ratio < 1 - self.section.clip)
            moving = torch.where(clipped, dsm.detach(), dsm)
            metrics["clip_fraction"] = clipped.to(dsm.dtype)
        loss = scale * p.signed_weights * moving
        if p.base is not None:  # without a KL term it is there only if it is the reference
            kl = p.error(p.velocity, p.base)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                if clipped is not None and self.section.clip_kl:
                    kl = torch.where(clipped, kl.detach(), kl)
                loss = loss + self.section.kl * kl
        return MemberLoss(loss, metrics)

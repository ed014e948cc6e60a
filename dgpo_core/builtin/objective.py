"""Direct Group Preference Optimization (arXiv 2510.08425) in its three published modes."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.types import Predictions

__all__ = ["DirectGroupPreference"]


class DirectGroupPreference(Objective):
    """The DGPO loss L_g / beta, L_g = -log sigmoid(-S_g), S_g = (beta / G) * sum_i c_i * (dsm_i - dsm_ref_i).

    Implemented in the authors' gradient-equivalent form: stopgrad(sigmoid(S_g)) * c_i * dsm_i, averaged over the group,
    has the gradient of L_g / beta. Dividing by beta makes the step size independent of beta.
    PPO-style clip: a member whose ratio exp(dsm_old - dsm) leaves [1 - clip, 1 + clip] in the direction of its
    advantage has no gradient, but still contributes to S_g. KL term: kl * mean (v - v_base)^2, always against the
    frozen base model, even if the reference is `ema_fast` (as in the authors' code; mode 2b).
    """

    needs_statistic = True

    @property
    def needs_reference(self) -> bool:
        """Always true: S_g compares with the reference."""
        return True

    @property
    def needs_base(self) -> bool:
        """True with a KL term."""
        return self.section.kl > 0

    @property
    def needs_old(self) -> bool:
        """True with clipping."""
        return self.section.clip is not None

    @property
    def skips_zero_weights(self) -> bool:
        """True without a KL term: a member with c_i = 0 does not contribute to S_g or to its gradient."""
        return self.section.kl == 0

    def statistic(self, predictions: Predictions) -> Tensor:
        """Return each member's term of S_g, [B]."""
        p = predictions
        assert p.reference is not None
        gap = p.error(p.velocity.detach(), p.target) - p.error(p.reference, p.target)
        return self.section.beta / p.group_size * p.signed_weights * gap

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is S_g of each member's group."""
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
        if p.base is not None:  # set without a KL term if the base is the reference
            kl = p.error(p.velocity, p.base)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                if clipped is not None and self.section.clip_kl:
                    kl = torch.where(clipped, kl.detach(), kl)
                loss = loss + self.section.kl * kl
        return MemberLoss(loss, metrics)

"""Direct Group Preference Optimization (arXiv 2510.08425), all three published modes."""

from __future__ import annotations

from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.flow.preference import outside_clip, preference_terms, statistic_shares, with_kl
from dgpo_core.types import Predictions

__all__ = ["DirectGroupPreference"]


class DirectGroupPreference(Objective):
    """L_g = -log sigmoid(-S_g) with S_g = (beta / G) * sum_i c_i * (dsm_i - dsm_ref_i), divided by beta.

    The formulas are those of `flow.preference`, which are gradient-equivalent to it.
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
        dsm, dsm_reference = p.error(p.velocity.detach(), p.target), p.error(p.reference, p.target)
        return statistic_shares(dsm, dsm_reference, p.signed_weights, p.group_size, self.section.beta)

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B]; `statistic` is S_g of each member's group."""
        p = predictions
        assert p.reference is not None
        assert statistic is not None
        dsm = p.error(p.velocity, p.target)
        clipped = None
        if self.section.clip is not None:
            assert p.old is not None
            clipped = outside_clip(dsm, p.error(p.old, p.target), p.advantages > 0, self.section.clip)
        loss, scale = preference_terms(dsm, p.signed_weights, statistic, clipped)
        metrics = {
            "dsm": dsm.detach(),
            "dsm_reference": p.error(p.reference, p.target),
            "sigmoid": scale,
        }
        if clipped is not None:
            metrics["clip_fraction"] = clipped.to(dsm.dtype)
        if p.base is not None:  # without a KL term it is there only if it is the reference
            kl = p.error(p.velocity, p.base)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                loss = with_kl(loss, kl, self.section.kl, clipped if self.section.clip_kl else None)
        return MemberLoss(loss, metrics)

"""Direct Group Preference Optimization (arXiv 2510.08425) in its three published modes."""

from __future__ import annotations

from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.flow.preference import outside_clip, preference_terms, statistic_shares, with_kl
from dgpo_core.types import Predictions

__all__ = ["DirectGroupPreference"]


class DirectGroupPreference(Objective):
    """The DGPO loss L_g / beta, L_g = -log sigmoid(-S_g), S_g = (beta / G) * sum_i c_i * (dsm_i - dsm_ref_i).

    The formulas are in `flow.preference`, in the authors' gradient-equivalent form.
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
        dsm, dsm_reference = p.error(p.velocity.detach(), p.target), p.error(p.reference, p.target)
        return statistic_shares(dsm, dsm_reference, p.signed_weights, p.group_size, self.section.beta)

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is S_g of each member's group."""
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
        if p.base is not None:  # set without a KL term if the base is the reference
            kl = p.error(p.velocity, p.base)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                loss = with_kl(loss, kl, self.section.kl, clipped if self.section.clip_kl else None)
        return MemberLoss(loss, metrics)

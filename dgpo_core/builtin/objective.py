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
    advantage has no gradient, but still contributes to S_g. KL term: kl * mean (v - v_base)^2, against the
    frozen base model, even if the reference is `ema_fast` (as in the authors' code; mode 2b), but against the reference
    if that is `start` or `reset`.

    A variant of the loss overrides `dsm`, `silenced` or `kl_weight`.
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

    def dsm(self, predictions: Predictions, velocity: Tensor) -> Tensor:
        """Return the denoising error of a velocity, [B], with gradient."""
        return predictions.error(velocity, predictions.target)

    def silenced(self, predictions: Predictions, dsm: Tensor) -> Tensor | None:
        """Return the members that get no gradient of the preference, bool [B], or None if all do. dsm: the policy's."""
        p = predictions
        if self.section.clip is None:
            return None
        assert p.old is not None
        return outside_clip(dsm, self.dsm(p, p.old), p.advantages > 0, self.section.clip)

    def kl_weight(self, predictions: Predictions) -> float | Tensor:
        """Return the weight of the KL term, a number or [B]."""
        scale = predictions.kl_scale
        return self.section.kl if scale is None else self.section.kl * scale

    def statistic(self, predictions: Predictions) -> Tensor:
        """Return each member's term of S_g, [B]."""
        p = predictions
        assert p.reference is not None
        dsm, dsm_reference = self.dsm(p, p.velocity.detach()), self.dsm(p, p.reference)
        return statistic_shares(dsm, dsm_reference, p.signed_weights, p.group_size, self.section.beta)

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is S_g of each member's group."""
        p = predictions
        assert p.reference is not None
        assert statistic is not None
        dsm = self.dsm(p, p.velocity)
        silenced = self.silenced(p, dsm)
        loss, scale = preference_terms(dsm, p.signed_weights, statistic, silenced)
        metrics = {
            "dsm": dsm.detach(),
            "dsm_reference": self.dsm(p, p.reference),
            "sigmoid": scale,
        }
        if silenced is not None:
            metrics["clip_fraction"] = silenced.to(dsm.dtype)
        if p.base is not None:  # set without a KL term if the base is the reference
            kl = p.error(p.velocity, p.base)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                loss = with_kl(loss, kl, self.kl_weight(p), silenced if self.section.clip_kl else None)
        return MemberLoss(loss, metrics)

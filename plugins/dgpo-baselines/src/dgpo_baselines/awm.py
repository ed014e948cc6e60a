"""Advantage weighted matching: the pretraining loss, weighed by advantages, as a policy gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import clipped_gain, refuse_in_vain, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["AdvantageWeightedMatching"]

POWERS = {"uniform": 0, "sigma": 1, "sigma-squared": 2}


class AdvantageWeightedMatching(Objective):
    """L = -min(r A, clamp(r, 1 - clip, 1 + clip) A) + kl * mean (v - v_base)^2 with r = exp(w (dsm_old - dsm)).

    arXiv 2509.25050 and its code (scxue/advantage_weighted_matching): -w dsm, the weighted matching error at a noised
    x0, stands for the sample's log-likelihood; w = 1, sigma or sigma^2. A is the engine's signed weight, old the fast
    EMA (the code's off-policy variant). Without a clip r is that of the policy with itself: 1, with the gradient of
    -w dsm (its on-policy variant). The code's Huber-like weights are left out.
    """

    @property
    def needs_reference(self) -> bool:
        """Never: there is no preference that is relative to one."""
        return False

    @property
    def needs_base(self) -> bool:
        """Only the KL term looks at it."""
        return bool(self.section.kl > 0)

    @property
    def needs_old(self) -> bool:
        """Only a clip needs a ratio."""
        return self.section.clip is not None

    @property
    def skips_zero_weights(self) -> bool:
        """A member with A = 0 gives no gradient; only a KL term would still pull on it."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError for settings without effect."""
        refuse_in_vain(self.section, "reference", "beta", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B]."""
        p, clip = predictions, self.section.clip
        dsm = p.error(p.velocity, p.target)
        weight = p.sigma ** POWERS[self.options.weighting]
        metrics = {"dsm": dsm.detach()}
        before = p.error(p.old, p.target) if p.old is not None else dsm.detach()
        ratio = (weight * (before - dsm)).exp()
        if clip is None:
            loss = -ratio * p.signed_weights
        else:
            clipped = clipped_gain(ratio, p.signed_weights, clip)
            loss = -clipped.gain
            metrics["clip_fraction"] = clipped.silent.to(loss.dtype)
        if p.base is not None:
            kl = velocity_kl(p)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": kl.detach(), "dsm_reference": p.error(p.base, p.target)}
        return MemberLoss(loss, metrics)

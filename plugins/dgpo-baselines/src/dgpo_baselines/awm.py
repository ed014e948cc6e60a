"""Advantage weighted matching: the pretraining loss weighted by advantages, as a policy gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import clipped_gain, refuse_unused, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["AdvantageWeightedMatching"]

POWERS = {"uniform": 0, "sigma": 1, "sigma-squared": 2}


class AdvantageWeightedMatching(Objective):
    """L = -min(r A, clamp(r, 1 - clip, 1 + clip) A) + kl * mean (v - v_base)^2 with r = exp(w (dsm_old - dsm)).

    Source: arXiv 2509.25050 and its code (scxue/advantage_weighted_matching). The negative weighted matching error
    -w dsm at a noised x0 replaces the log-likelihood of the sample; w = 1, sigma or sigma^2. A is the engine's signed
    weight. The old policy is the fast EMA (the code's off-policy variant). Without a clip, the old policy is the policy
    itself: r = 1, with the gradient of -w dsm (the on-policy variant). The code's Huber-like weights are omitted.
    """

    @property
    def needs_reference(self) -> bool:
        """Always false: the loss does not use a reference model."""
        return False

    @property
    def needs_base(self) -> bool:
        """True with a KL term."""
        return bool(self.section.kl > 0)

    @property
    def needs_old(self) -> bool:
        """True with clipping."""
        return self.section.clip is not None

    @property
    def skips_zero_weights(self) -> bool:
        """True without a KL term: a member with A = 0 does not contribute to the gradient."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError for settings that this objective does not use."""
        refuse_unused(self.section, "reference", "beta", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]."""
        p, clip = predictions, self.section.clip
        dsm = p.error(p.velocity, p.target)
        weight = p.sigma ** POWERS[self.options.weighting]
        metrics = {"dsm": dsm.detach()}
        dsm_old = p.error(p.old, p.target) if p.old is not None else dsm.detach()
        ratio = (weight * (dsm_old - dsm)).exp()
        if clip is None:
            loss = -ratio * p.signed_weights
        else:
            clipped = clipped_gain(ratio, p.signed_weights, clip)
            loss = -clipped.gain
            metrics["clip_fraction"] = clipped.is_clipped.to(loss.dtype)
        if p.base is not None:
            kl = velocity_kl(p)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": kl.detach(), "dsm_reference": p.error(p.base, p.target)}
        return MemberLoss(loss, metrics)

"""Policy gradients on the evidence lower bound: the denoising error at a noised x0 replaces the log-likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import refuse_unused, self_normalized_error, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["ElboPolicyGradient"]


class ElboPolicyGradient(Objective):
    """EPG, PEPG or PAR with log p = -dsm, plus kl * mean (v - v_base)^2.

    Source: arXiv 2602.04663 and its code (jaemoo-choi/rethinking-diffusion-rl). With p = dsm_old - dsm, the log-ratio
    to the old policy, rho = exp(p) without gradient, and A = `scale` times the engine's signed weight:

    * `epg`: -rho A log p, the policy gradient;
    * `pepg`: -rho (A - p) log p, p without gradient: regularized by the reverse KL to the old policy, in a member's own
      reward;
    * `par`: rho (A - p)^2 / 2, p with gradient: the same gradient as `pepg`.

    The paper's A is 0.1 (r - mean): `advantages.std: none` and `scale: 0.1`. With `adaptive`, dsm is that of x0^,
    divided by its mean magnitude, sigma mean (v - target)^2 / mean |v - target|; without it, mean (v - target)^2. The
    old policy is the fast EMA. `ratio: false` sets rho to 1.
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
        """True unless the loss is the plain policy gradient without a ratio."""
        return bool(self.options.ratio or self.options.form != "epg")

    @property
    def skips_zero_weights(self) -> bool:
        """True for `epg` without a KL term: a member with A = 0 has no gradient. In the other forms p still acts."""
        return bool(self.options.form == "epg" and self.section.kl == 0)

    def check(self, run: RunConfig) -> None:
        """Raise UserError for settings that this objective does not use."""
        refuse_unused(self.section, "reference", "beta", "clip", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]."""
        p = predictions
        dsm = self._dsm(p, p.velocity)
        log_ratio = (dsm if p.old is None else self._dsm(p, p.old)).detach() - dsm
        rho = log_ratio.detach().exp() if self.options.ratio else 1.0
        gain = self.options.scale * p.signed_weights
        if self.options.form == "par":
            loss = rho * (gain - log_ratio).square() / 2
        else:
            loss = rho * (gain if self.options.form == "epg" else gain - log_ratio.detach()) * dsm
        metrics = {"dsm": p.error(p.velocity.detach(), p.target), "ratio_distance": log_ratio.detach().abs()}
        if p.base is not None:
            kl = velocity_kl(p)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": kl.detach(), "dsm_reference": p.error(p.base, p.target)}
        return MemberLoss(loss, metrics)

    def _dsm(self, p: Predictions, velocity: Tensor) -> Tensor:
        if not self.options.adaptive:
            return p.error(velocity, p.target)
        return self_normalized_error(p, velocity, of_x0=True)

"""DiffusionNFT: contrasts an implicit positive and an implicit negative policy on the forward process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import refuse_unused, self_normalized_error, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["DiffusionNft"]


class DiffusionNft(Objective):
    """L = c / beta * [r e(v+) + (1 - r) e(v-)] with v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v.

    Source: arXiv 2509.16117 (theorem on policy optimization) and its code (NVlabs/DiffusionNFT). The optimality
    probability of a sample is r = 1/2 + clip(A, -c, c) / 2c, with A the engine's signed weight (the advantage under the
    weighting `abs-advantage`) and c = `advantage_clip`. The old policy generates the samples. The paper's loss has
    e(u) = |u - v|^2 with v = noise - x0, without the factor c / beta. The factor is the code's: with it, the gradient
    at v = v_old is A times that of e for any c and beta. With `adaptive`, e(u) = |x0^ - x0|^2 /
    stopgrad(mean |x0^ - x0|), where x0^ = x_sigma - sigma u; this equals sigma |u - v|^2 / stopgrad(mean |u - v|). All
    means are over the latent's dimensions.
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
        """Always true: the implicit policies are defined relative to the old policy."""
        return True

    @property
    def skips_zero_weights(self) -> bool:
        """Always false: at r = 1/2 the loss still pulls the policy towards the old one."""
        return False

    def check(self, run: RunConfig) -> None:
        """Raise UserError unless the old policy generates the samples, and for settings that are not used."""
        after = self.section.ema_rollouts_after
        if after != 0:
            raise UserError(
                f"objective.ema_rollouts_after: {'null' if after is None else after}: {self.section.use} requires "
                "rollouts from the old policy (the fast EMA) from the first iteration; set it to 0"
            )
        refuse_unused(self.section, "reference", "beta", "clip", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]."""
        p = predictions
        assert p.old is not None
        beta, c = self.options.beta, self.options.advantage_clip
        r = 0.5 + p.signed_weights.clamp(-c, c) / (2 * c)
        offset = beta * (p.velocity - p.old)
        positive, negative = self._error(p.old + offset, p), self._error(p.old - offset, p)
        loss = c / beta * (r * positive + (1 - r) * negative)
        metrics = {
            "dsm": p.error(p.velocity.detach(), p.target),
            "positive": positive.detach(),
            "negative": negative.detach(),
            "old_distance": p.error(p.velocity.detach(), p.old),
        }
        if p.base is not None:
            kl = velocity_kl(p)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": kl.detach(), "dsm_reference": p.error(p.base, p.target)}
        return MemberLoss(loss, metrics)

    def _error(self, velocity: Tensor, p: Predictions) -> Tensor:
        """Return e(u), [B]."""
        if not self.options.adaptive:
            return p.error(velocity, p.target)
        return self_normalized_error(p, velocity, of_x0=True)

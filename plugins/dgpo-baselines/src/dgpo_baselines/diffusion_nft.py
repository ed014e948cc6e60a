"""DiffusionNFT: an implicit positive and an implicit negative policy, contrasted on the forward process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import refuse_in_vain, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["DiffusionNft"]

SMALLEST = 1e-5
"""Smallest mean magnitude of an error of x0 that the adaptive weight divides by (the authors' number)."""


class DiffusionNft(Objective):
    """L = c / beta * [r e(v+) + (1 - r) e(v-)] with v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v.

    arXiv 2509.16117 (theorem on policy optimization) and its code (NVlabs/DiffusionNFT). r = 1/2 + clip(A, -c, c) / 2c
    is the optimality probability of a sample, A the engine's signed weight (the advantage under the weighting
    `abs-advantage`), c = `advantage_clip`; the samples are the old policy's. The paper's loss has e(u) = |u - v|^2 with
    v = noise - x0 and no factor c / beta; the factor, the code's, makes the gradient at v = v_old A times that of e,
    whatever c and beta. With `adaptive`, e(u) = |x0^ - x0|^2 / stopgrad(mean |x0^ - x0|), where x0^ =
    x_sigma - sigma u, that is sigma |u - v|^2 / stopgrad(mean |u - v|). All means over the latent's dimensions.
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
        """Always: the implicit policies lie around the old one."""
        return True

    @property
    def skips_zero_weights(self) -> bool:
        """Never: at r = 1/2 the two errors still pull to the old policy."""
        return False

    def check(self, run: RunConfig) -> None:
        """Raise UserError unless the old policy draws the samples, and for settings without effect."""
        after = self.section.ema_rollouts_after
        if after != 0:
            raise UserError(
                f"objective.ema_rollouts_after: {'null' if after is None else after}: {self.section.use} takes the "
                "samples of the old policy from the first iteration on; set it to 0"
            )
        refuse_in_vain(self.section, "reference", "beta", "clip", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B]."""
        p = predictions
        assert p.old is not None
        beta, c = self.options.beta, self.options.advantage_clip
        r = 0.5 + p.signed_weights.clamp(-c, c) / (2 * c)
        away = beta * (p.velocity - p.old)
        positive, negative = self._error(p.old + away, p), self._error(p.old - away, p)
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
        """e(u), [B]."""
        square = p.error(velocity, p.target)
        if not self.options.adaptive:
            return square
        magnitude = p.sigma * (velocity - p.target).detach().abs().flatten(1).mean(1)
        return p.sigma.square() * square / magnitude.clamp(min=SMALLEST)

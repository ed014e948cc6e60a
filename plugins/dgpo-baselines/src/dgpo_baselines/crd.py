"""Centered reward distillation: the policy's implicit rewards are regressed to the rewards, both centered per group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import refuse_unused, self_normalized_error, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["CenteredRewardDistillation"]


class CenteredRewardDistillation(Objective):
    """L = c / beta * [beta (p_i - mean p) - (r_i - mean r)]^2 with r_i = 1/2 + clip(A_i, -c, c) / 2c, p_i = dsm_old_i -
    dsm_i, means over the members of a group, without gradient; plus kl * mean (v - v_base)^2.

    Source: arXiv 2603.14128; formulas as in X-GenGroup/Flow-Factory (crd), uniform weights and squared loss. A is the
    engine's signed weight, c = `advantage_clip`. The partition function is the same for all members of a group, so that
    centering cancels it. Where no advantage is clipped, the gradient is that of (A_i - mean A - 2c beta (p_i -
    mean p)) dsm_i: at p = 0 it is DGPO's without the sigmoid, later a residual of each member, which ends when the
    reward is fitted, at p_i - mean p = (A_i - mean A) / (2c beta). Flow-Factory centers over a micro-batch, which is
    the same only if that is one group.

    With `adaptive`, each dsm is divided by its mean |v - target|, without gradient. The old policy is the fast EMA, as
    `objective.reference`, because the group's mean needs its predictions. With `kl_floor`, the KL term of a member
    has the weight kl_floor + r_i (1 - kl_floor): more where the reward is high.
    """

    needs_statistic = True

    @property
    def needs_reference(self) -> bool:
        """Always true: implicit rewards are relative to the old policy, the reference."""
        return True

    @property
    def needs_base(self) -> bool:
        """True with a KL term."""
        return bool(self.section.kl > 0)

    @property
    def needs_old(self) -> bool:
        """Always false: the reference is the old policy."""
        return False

    @property
    def skips_zero_weights(self) -> bool:
        """Always false: a member with A = 0 is still held to its group's mean."""
        return False

    def check(self, run: RunConfig) -> None:
        """Raise UserError unless the old policy is the reference, and for settings that are not used."""
        if self.section.reference != "ema_fast":
            raise UserError(
                f"objective.reference: {self.section.reference}: {self.section.use} compares with the old policy, the "
                "fast EMA; set it to ema_fast"
            )
        refuse_unused(self.section, "beta", "clip", "clip_kl")

    def statistic(self, predictions: Predictions) -> Tensor:
        """Return each member's share of its group's mean beta p - r, [B]."""
        p = predictions
        return self._excess(p, self._dsm(p, p.velocity.detach())) / p.group_size

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is the mean of beta p - r over each member's group."""
        p = predictions
        assert statistic is not None
        dsm = self._dsm(p, p.velocity)
        residual = self._excess(p, dsm) - statistic
        loss = self.options.advantage_clip / self.options.beta * residual.square()
        metrics = {"dsm": p.error(p.velocity.detach(), p.target), "residual": residual.detach().abs()}
        if p.base is not None:  # set without a KL term if the base comes at no cost
            kl = velocity_kl(p)
            metrics |= {"kl": kl.detach(), "dsm_reference": p.error(p.base, p.target)}
            if self.section.kl > 0:
                loss = loss + self.section.kl * self._kl_share(p) * kl
        return MemberLoss(loss, metrics)

    def _excess(self, p: Predictions, dsm: Tensor) -> Tensor:
        """Return beta p_i - r_i, [B]: by how much the implicit reward exceeds the reward, up to a constant."""
        assert p.reference is not None
        excess: Tensor = self.options.beta * (self._dsm(p, p.reference) - dsm) - self._reward(p)
        return excess

    def _reward(self, p: Predictions) -> Tensor:
        """Return the reward r_i in [0, 1], [B]."""
        c = self.options.advantage_clip
        reward: Tensor = 0.5 + p.signed_weights.clamp(-c, c) / (2 * c)
        return reward

    def _kl_share(self, p: Predictions) -> float | Tensor:
        floor = self.options.kl_floor
        return 1.0 if floor is None else floor + self._reward(p) * (1 - floor)

    def _dsm(self, p: Predictions, velocity: Tensor) -> Tensor:
        if not self.options.adaptive:
            return p.error(velocity, p.target)
        return self_normalized_error(p, velocity, of_x0=False)

"""Flow-GRPO: a policy gradient over the random steps of the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import clipped_gain, refuse_unused, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import Predictions, mean_square

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["FlowGrpo"]


class FlowGrpo(Objective):
    """L = -min(r A, clamp(r, 1 - clip, 1 + clip) A) + kl * KL at each step of the path (arXiv 2505.05470).

    r = exp(log p(x' | x) - log p_old(x' | x)), with log p the log-density of the sampler's step, averaged over the
    latent's dimensions, and p_old that of the weights that generated the path. With `log_prob: distance`, log p is
    -(x' - mean)^2. KL is that of two Gaussians with the same std: the mean over the dimensions of
    (mean - mean_base)^2 / (2 std^2). A is the engine's signed weight: the advantage under the weighting
    `abs-advantage`. All models use the guidance of the rollouts. Code: yifan123/flow_grpo, scripts/train_sd3.py; later
    versions of it divide the KL by 2 s^2, where std^2 = s^2 * -dt.
    """

    needs_path = True

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
        """Always false: the path contains the log-probabilities under the weights that generated it."""
        return False

    @property
    def skips_zero_weights(self) -> bool:
        """True without a KL term: a member with A = 0 does not contribute to the gradient."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError for rollouts from the fast EMA, and for settings that this objective does not use."""
        after = self.section.ema_rollouts_after
        if after is not None:
            raise UserError(
                f"objective.ema_rollouts_after: {after}: {self.section.use} compares with the policy that "
                "generated the path; with rollouts from the fast EMA, ratios would leave the clip range before the "
                "first update; set it to null"
            )
        refuse_unused(self.section, "reference", "beta", "clip", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B] of one step."""
        p, step = predictions, predictions.step
        assert step is not None
        mean, std = step.distribution(p.velocity)
        log_ratio = gaussian_log_prob(step.next_x, mean, std) - step.log_prob
        if self.options.log_prob == "distance":
            log_ratio = 2 * std**2 * log_ratio  # the other terms of the log-density cancel
        ratio = log_ratio.exp()
        clipped = clipped_gain(ratio, p.signed_weights, self.options.clip)
        loss = -clipped.gain
        metrics = {
            "dsm": p.error(p.velocity.detach(), p.target),
            "clip_fraction": clipped.is_clipped.to(loss.dtype),
            "ratio_distance": (ratio.detach() - 1).abs(),
        }
        if p.base is not None:
            mean_base, _ = step.distribution(p.base)
            kl = mean_square(mean - mean_base) / (2 * std**2)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": velocity_kl(p).detach(), "step_kl": kl.detach()}
        return MemberLoss(loss, metrics)

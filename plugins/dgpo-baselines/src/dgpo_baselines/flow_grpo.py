"""Flow-GRPO: a policy gradient over the random steps of the sampler."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import clipped_gain, refuse_unused, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import PathStep, Predictions, mean_square

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

    * `ratio_norm`: GRPO-Guard (arXiv 2510.22319). log r becomes std * (log r + D), D = mean (mean - mean_old)^2 /
      (2 std^2).
      Under the old policy, E[log r] = -D: the ratio is below 1 on average, by more at steps with little noise, so that
      its clip acts on one side. With x' = mean_old + std z, the new log-ratio is mean (z (mean - mean_old)), whose
      expectation is 0 and whose scale does not depend on std. The first term of the loss is divided by |dt|, in which
      the change of the mean is linear.
    * `step_weight: noise`: TempFlow-GRPO (arXiv 2508.04324). The first term of the loss is multiplied by the std of its
      step, s sqrt|dt|, over the mean std of the random steps of the path.
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
    def needs_means(self) -> bool:
        """True with the centered ratio of GRPO-Guard."""
        return bool(self.options.ratio_norm)

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
        if self.options.ratio_norm:
            log_ratio = std * (log_ratio + mean_square(mean - self._old_mean(step)) / (2 * std**2))
        ratio = log_ratio.exp()
        clipped = clipped_gain(ratio, p.signed_weights, self.options.clip)
        loss = -clipped.gain
        if self.options.ratio_norm:
            loss = loss / (step.sigma - step.next_sigma)
        elif self.options.step_weight == "noise":
            loss = loss * (std / fmean(other for other in step.stds if other > 0))
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

    def _old_mean(self, step: PathStep) -> Tensor:
        """Return the mean of the step under the weights that drew it. Raises UserError if the sampler kept none."""
        if step.mean is None:
            raise UserError(
                f"objective.options.ratio_norm: {self.section.use} compares the means of steps, which the rollout's "
                "sampler does not keep; use flow-sde or flow-cps, or remove the option"
            )
        return step.mean

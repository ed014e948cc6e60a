"""Flow-GRPO: a policy gradient over the sampler's random steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_baselines.terms import clipped_gain, refuse_in_vain, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import Predictions, mean_square

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["FlowGrpo"]


class FlowGrpo(Objective):
    """L = -min(r A, clamp(r, 1 - clip, 1 + clip) A) + kl * KL at each step of the path (arXiv 2505.05470).

    r = exp(log p(x' | x) - log p_old(x' | x)), log p the density of the step that the sampler took, mean over the
    latent's dimensions; old: the weights that drew it. With the option `log_prob: distance`, log p is -(x' - mean)^2.
    KL of the two Gaussians, which have one std: mean over the dimensions of (mean - mean_base)^2 / (2 std^2). A is the
    engine's signed weight: the advantage under the weighting `abs-advantage`. All models are guided as the rollouts
    are. Code: yifan123/flow_grpo, scripts/train_sd3.py; later versions of it divide the KL by
    2 s^2, where std^2 = s^2 * -dt.
    """

    needs_path = True

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
        """Never: the path has the probabilities under the weights that drew it."""
        return False

    @property
    def skips_zero_weights(self) -> bool:
        """A member with A = 0 gives no policy gradient; only a KL term would still pull on it."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError for rollouts from the fast EMA, and for settings that are not Flow-GRPO's."""
        after = self.section.ema_rollouts_after
        if after is not None:
            raise UserError(
                f"objective.ema_rollouts_after: {after}: {self.section.use} compares with the policy that drew the "
                "path, and rollouts from the fast EMA would leave its clip range before any update; set it to null"
            )
        refuse_in_vain(self.section, "reference", "beta", "clip", "clip_kl")

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B] of one step."""
        p, step = predictions, predictions.step
        assert step is not None
        mean, std = step.distribution(p.velocity)
        gained = gaussian_log_prob(step.next_x, mean, std) - step.log_prob
        if self.options.log_prob == "distance":
            gained = 2 * std**2 * gained  # of the log-density only the distance moves
        ratio = gained.exp()
        clipped = clipped_gain(ratio, p.signed_weights, self.options.clip)
        loss = -clipped.gain
        metrics = {
            "dsm": p.error(p.velocity.detach(), p.target),
            "clip_fraction": clipped.silent.to(loss.dtype),
            "ratio_distance": (ratio.detach() - 1).abs(),
        }
        if p.base is not None:
            mean_base, _ = step.distribution(p.base)
            kl = mean_square(mean - mean_base) / (2 * std**2)
            loss = loss + self.section.kl * kl
            metrics |= {"kl": velocity_kl(p).detach(), "step_kl": kl.detach()}
        return MemberLoss(loss, metrics)

"""t_min by sample quality: the noise level that hides the artifacts of few-step sampling."""

from __future__ import annotations

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_core.errors import UserError
from dgpo_core.transfers import in_float64

__all__ = ["DisagreementTmin", "hidden_from"]


def hidden_from(artifact: float, tolerance: float) -> float:
    """Return the sigma at which an artifact of root mean square r equals `tolerance` standard deviations of the noise.

    Training noises a sample x0 to (1 - sigma) x0 + sigma noise. With and without an artifact d these are two Gaussians
    of standard deviation sigma whose means differ by (1 - sigma) d. Their Kullback-Leibler divergence per dimension is
    ((1 - sigma) / sigma)^2 r^2 / 2, with r^2 the mean of d^2. It decreases from infinity at sigma = 0 to 0 at sigma = 1
    and equals tolerance^2 / 2 where (1 - sigma) r / sigma = tolerance:

        sigma = r / (r + tolerance)

    For larger sigma the two are harder to distinguish, for smaller sigma easier.
    """
    return artifact / (artifact + tolerance)


class DisagreementTmin(MeasuringPolicy):
    """t_min = r / (r + tolerance), with r the difference between few-step and many-step samples of the same noise.

    The current policy samples a probe batch twice, with the rollouts' number of steps and with `refine` times as many.
    r is the median over samples of the root mean square difference of the latents. The median ignores the occasional
    sample whose two solves diverge early and show different content, which is not an artifact. `hidden_from` derives
    the rule. The tolerance is relative to the noise, so it does not depend on the model, the resolution or the number
    of steps: with fewer steps, or more curved paths, r and t_min increase.

    Logged: `disagreement`, r of the last measurement.
    """

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError like every policy, and if the rollout sampler is random."""
        if not context.deterministic:
            raise UserError(
                "timesteps.use: this policy compares few-step with many-step samples of the same noise, but "
                "rollout.sampler is random; use dsm-gap-t-min or scheduled-t-min, or a deterministic sampler"
            )
        super().check(context, count)

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float, dict[str, float]]:
        """Return t_min and r."""
        count = self.options.samples
        few, many = probe.samples(count), probe.samples(count, refine=self.options.refine)
        r = float(in_float64(few - many).square().flatten(1).mean(1).sqrt().quantile(0.5))
        return hidden_from(r, self.options.tolerance), {"disagreement": r}

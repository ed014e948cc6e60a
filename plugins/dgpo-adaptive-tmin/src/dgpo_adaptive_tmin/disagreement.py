"""t_min by generation quality: the noise that hides what few steps did to the samples."""

from __future__ import annotations

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_core.errors import UserError

__all__ = ["DisagreementTmin", "hidden_from"]


def hidden_from(artifact: float, tolerance: float) -> float:
    """The sigma at which an artifact of root mean square r stands `tolerance` noise standard deviations high.

    A sample x0 with an artifact d and the sample without it are seen in training as (1 - sigma) x0 + sigma noise: two
    Gaussians of standard deviation sigma whose means lie (1 - sigma) d apart. Per dimension their Kullback-Leibler
    divergence is ((1 - sigma) / sigma)^2 r^2 / 2, with r^2 the mean of d^2; it falls from infinity at sigma = 0 to 0 at
    sigma = 1, and is tolerance^2 / 2 where (1 - sigma) r / sigma = tolerance, that is at

        sigma = r / (r + tolerance).

    Above it a denoiser can tell the two apart by less; below it by more.
    """
    return artifact / (artifact + tolerance)


class DisagreementTmin(MeasuringPolicy):
    """t_min = r / (r + tolerance), r the disagreement of few-step samples with many-step ones of the same noise.

    A probe batch is drawn twice by the current policy, in the rollouts' steps and in `refine` times as many; r is the
    median over samples of the root mean square of the difference of their latents. (The median, because now and then
    the two solves part early and show different things, which is no artifact.) `hidden_from` derives the rule. The
    tolerance is relative to the noise and thus free of the model, the resolution and the number of steps: samples with
    fewer steps, or of a policy whose paths have become more curved, ask for a larger t_min by themselves.

    Logged: `disagreement`, r of the last measurement.
    """

    def check(self, context: TimestepContext, count: int) -> None:
        """Raise UserError as every policy does, and where few-step samples cannot be compared with many-step ones."""
        if not context.deterministic:
            raise UserError(
                "timesteps.use: this policy compares samples in few steps with the same samples in many, but "
                "rollout.sampler is random; use dsm-gap-t-min or scheduled-t-min, or a deterministic sampler"
            )
        super().check(context, count)

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float, dict[str, float]]:
        """t_min, and r."""
        count = self.options.samples
        few, many = probe.samples(count), probe.samples(count, refine=self.options.refine)
        r = float((few - many).double().square().flatten(1).mean(1).sqrt().quantile(0.5))
        return hidden_from(r, self.options.tolerance), {"disagreement": r}

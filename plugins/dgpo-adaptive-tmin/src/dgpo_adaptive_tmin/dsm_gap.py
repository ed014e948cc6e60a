"""t_min by the DSM gap: a quantile of the times at which the preference changes the policy."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["DsmGapTmin", "quantile"]


def quantile(work: Tensor, share: float) -> float:
    """Return the time in [0, 1] below which the fraction `share` of `work` lies.

    work: float64 [T], non-negative with a positive sum; each entry is uniform over one of T equal bins of [0, 1].
    """
    total = work.cumsum(0)
    target = share * float(total[-1])
    k = int(torch.searchsorted(total, target))
    return (k + 1 - (float(total[k]) - target) / float(work[k])) / len(work)


class DsmGapTmin(MeasuringPolicy):
    """t_min = the time below which the fraction `below` of the preference's work lies.

    gap(sigma) = mean (dsm_base - dsm_policy) / mean dsm_base over samples of the policy with the rollouts' number of
    steps, at the centers of `bins` equal bins of [0, 1]. It is the relative improvement of the policy over the base
    model at denoising the policy's own samples.

    The loss does not optimize the gap. Its gradient is the sum of c_i times the gradient of dsm_i, and the c_i of a
    group sum to 0. So features that all samples of a group share (the artifacts of few-step sampling) cancel to first
    order, and preferring some samples to others increases the mean error. The gap is therefore negative where the
    preference changes the policy; max(-gap, 0) measures this work. Where the gap is positive, the policy has instead
    adapted to its own samples. That happens at low noise, where the shared artifacts dominate. t_min is placed where
    the work begins, at a lower quantile: a noisy measurement of single bins changes a quantile less than the time at
    which the gap changes its sign.

    t_min is `start` until a gap falls below -`threshold` (at the beginning of training all gaps are 0).
    Logged: `gap_low` and `gap_high`, the smallest and the largest gap.
    """

    def start(self, context: TimestepContext) -> float:
        """Return the option `start`, resolved with the shift."""
        return resolve_sigma(self.options.start, context.shift)

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        """Return t_min (None while all gaps are above -`threshold`), and the smallest and largest gap."""
        edges = torch.linspace(0, 1, self.options.bins + 1, dtype=torch.float64)
        policy, base = probe.errors(probe.samples(self.options.samples), (edges[1:] + edges[:-1]) / 2)
        gap = (base - policy).mean(1) / base.mean(1)
        values = {"gap_low": float(gap.min()), "gap_high": float(gap.max())}
        at_work = values["gap_low"] < -self.options.threshold
        return (quantile((-gap).clamp(min=0), self.options.below) if at_work else None), values

"""t_min by the policy's own dsm gap: the time below which little of the preference's work lies."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["DsmGapTmin", "quantile"]


def quantile(work: Tensor, share: float) -> float:
    """The time below which `share` of the work lies; work >= 0, float64 [T] with a sum above 0, each entry spread
    evenly over one of T even bins of [0, 1]."""
    total = work.cumsum(0)
    wanted = share * float(total[-1])
    k = int(torch.searchsorted(total, wanted))
    return (k + 1 - (float(total[k]) - wanted) / float(work[k])) / len(work)


class DsmGapTmin(MeasuringPolicy):
    """t_min = the time below which a share `below` of the preference's work lies.

    gap(sigma) = mean (dsm_base - dsm_policy) / mean dsm_base over samples that the policy has drawn in the rollouts'
    steps, at the middles of `bins` even bins of [0, 1]: how much better than the base model the policy denoises what
    it draws itself.

    The loss does not ask for that. Its gradient is a sum of c_i times the gradient of dsm_i, and the c_i of a group sum
    to 0, so what its samples have in common (the look of few steps) cancels to first order, and preferring some of them
    to others costs error on the average: the gap is negative where a preference is at work, and max(-gap, 0) is taken
    for how much of it. Where the gap is positive the policy has instead come closer to its own samples as they are.
    That happens at low noise, where the common look is what there is to see. So t_min is put where the work begins: at
    its lower quantile, because the quantile of a sum moves little when single bins are measured badly, as the place
    where the gap changes its sign does.

    Until some gap falls below -`threshold` (at the start it is 0 everywhere) t_min is `start`.
    Logged: `gap_low` and `gap_high`, the smallest and largest gap.
    """

    def start(self, context: TimestepContext) -> float:
        """As the option says."""
        return resolve_sigma(self.options.start, context.shift)

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        """t_min (None while no preference is at work), and the extreme gaps."""
        edges = torch.linspace(0, 1, self.options.bins + 1, dtype=torch.float64)
        policy, base = probe.errors(probe.samples(self.options.samples), (edges[1:] + edges[:-1]) / 2)
        gap = (base - policy).mean(1) / base.mean(1)
        values = {"gap_low": float(gap.min()), "gap_high": float(gap.max())}
        at_work = values["gap_low"] < -self.options.threshold
        return (quantile((-gap).clamp(min=0), self.options.below) if at_work else None), values

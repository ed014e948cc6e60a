"""t_min by the policy's own dsm gap: the time below which it learns what its samples are, not which are preferred."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["DsmGapTmin", "sign_change"]


def sign_change(gap: Tensor, times: Tensor) -> float:
    """The time, linearly interpolated, at which a gap that is positive at small times [T] first ceases to be: 0 if it
    is not positive at the smallest, the largest if it is positive throughout. Both float64 [T], times ascending."""
    values, at = gap.tolist(), times.tolist()
    if values[0] <= 0:
        return 0.0
    for (before, left), (after, right) in zip(
        zip(values, at, strict=True), zip(values[1:], at[1:], strict=True), strict=False
    ):
        if after <= 0:
            return float(left + (right - left) * before / (before - after))
    return float(at[-1])


class DsmGapTmin(MeasuringPolicy):
    """t_min = the time at which the dsm gap of the policy on its own samples changes sign.

    gap(sigma) = mean (dsm_base - dsm_policy) / mean dsm_base over samples that the policy has drawn in the rollouts'
    steps, at the middles of `bins` even bins of [0, 1]: how much better than the base model the policy denoises what
    it draws itself.

    The loss does not ask for that. Its gradient is a sum of c_i times the gradient of dsm_i, and the c_i of a group sum
    to 0, so what its samples have in common (the look of few steps) cancels to first order, and preferring some of them
    to others costs error on the average: the gap is negative where a preference is at work. Where it is positive the
    policy has instead come closer to its own samples as they are. That happens at low noise, where the common look is
    what there is to see. So t_min is raised to the sign change, and falls when the policy lets go of its own look.

    Until some gap exceeds `threshold` (at the start it is 0 everywhere) t_min is `start`.
    Logged: `gap_low` and `gap_high`, the smallest and largest gap.
    """

    def start(self, context: TimestepContext) -> float:
        """As the option says."""
        return resolve_sigma(self.options.start, context.shift)

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        """t_min (None while the policy has not moved), and the extreme gaps."""
        edges = torch.linspace(0, 1, self.options.bins + 1, dtype=torch.float64)
        times = (edges[1:] + edges[:-1]) / 2
        policy, base = probe.errors(probe.samples(self.options.samples), times)
        gap = (base - policy).mean(1) / base.mean(1)
        values = {"gap_low": float(gap.min()), "gap_high": float(gap.max())}
        moved = max(abs(value) for value in values.values()) > self.options.threshold
        return (sign_change(gap, times) if moved else None), values

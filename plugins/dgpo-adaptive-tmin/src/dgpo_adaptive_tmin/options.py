"""Options of the timestep policies (does not import torch)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.sigma import SigmaExpression

__all__ = ["AdaptiveOptions", "DisagreementOptions", "DsmGapOptions", "MeasuredOptions", "ScheduledOptions"]


class AdaptiveOptions(Options):
    """Options of all policies."""

    within: Literal["uniform", "sampler-steps"] = Field(
        default="uniform",
        description="How times are drawn within the bounds: uniformly, or from the times of the sampler.",
    )


class ScheduledOptions(AdaptiveOptions):
    """Options of the timestep policy `scheduled-t-min`."""

    start: SigmaExpression = Field(default="shift(0.6)", description="t_min at the first iteration.")
    end: SigmaExpression = Field(default="shift(0.2)", description="t_min at the end of the schedule.")
    t_max_start: SigmaExpression = Field(default=1.0, description="t_max at the first iteration.")
    t_max_end: SigmaExpression = Field(default=1.0, description="t_max at the end of the schedule.")
    shape: Literal["linear", "cosine"] = Field(default="linear", description="Interpolation between start and end.")
    until: Float = Field(
        default=1.0, gt=0, le=1, description="Fraction of run.iterations after which the end values are reached."
    )


class MeasuredOptions(AdaptiveOptions):
    """Options of the measuring policies."""

    highest: SigmaExpression = Field(
        default="shift(0.7)", description="Largest t_min; the smallest is timesteps.t_min."
    )
    every: Int = Field(default=5, ge=1, le=10**9, description="Number of iterations between measurements.")
    samples: Int = Field(
        default=16, ge=2, le=10_000, description="Samples of a measurement, each of another training prompt."
    )
    smoothing: Float = Field(
        default=0.5, ge=0, lt=1, description="Weight of the old t_min in the new one; 0 disables smoothing."
    )


class DisagreementOptions(MeasuredOptions):
    """Options of the timestep policy `disagreement-t-min`."""

    refine: Int = Field(
        default=4, ge=2, le=1000, description="Steps of the many-step samples, as a multiple of rollout.steps."
    )
    tolerance: Float = Field(
        default=0.1,
        gt=0,
        le=1e6,
        description="Largest accepted artifact, relative to the noise: at t_min and above, few-step and many-step "
        "samples differ by at most this number of standard deviations of the noise.",
    )


class DsmGapOptions(MeasuredOptions):
    """Options of the timestep policy `dsm-gap-t-min`."""

    samples: Int = Field(
        default=32, ge=2, le=10_000, description="Samples of a measurement, each of another training prompt."
    )
    start: SigmaExpression = Field(default="shift(0.3)", description="t_min until a gap falls below -threshold.")
    below: Float = Field(
        default=0.25, gt=0, lt=1, description="Fraction of the preference's work that lies below t_min."
    )
    bins: Int = Field(
        default=20, ge=2, le=100, description="Number of times between 0 and 1 at which the gap is measured."
    )
    threshold: Float = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description="Measurements take effect once the policy's error exceeds that of the base model by more than this "
        "fraction at some time.",
    )

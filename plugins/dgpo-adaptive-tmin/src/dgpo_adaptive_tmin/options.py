"""Options of the timestep policies. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.sigma import SigmaExpression

__all__ = ["AdaptiveOptions", "DisagreementOptions", "DsmGapOptions", "MeasuredOptions", "ScheduledOptions"]


class AdaptiveOptions(Options):
    """What all of the policies have."""

    within: Literal["uniform", "sampler-steps"] = Field(
        default="uniform",
        description="How times are drawn within the moving bounds: uniformly, or from the sampler's own times.",
    )


class ScheduledOptions(AdaptiveOptions):
    """Options of the timestep policy `scheduled-t-min`."""

    start: SigmaExpression = Field(default="shift(0.6)", description="t_min of the first iteration.")
    end: SigmaExpression = Field(default="shift(0.2)", description="t_min at the end of the schedule.")
    t_max_start: SigmaExpression = Field(default=1.0, description="t_max of the first iteration.")
    t_max_end: SigmaExpression = Field(default=1.0, description="t_max at the end of the schedule.")
    shape: Literal["linear", "cosine"] = Field(
        default="linear", description="The way between them: even, or slow at both ends."
    )
    until: Float = Field(
        default=1.0, gt=0, le=1, description="Share of run.iterations after which the end is reached and kept."
    )


class MeasuredOptions(AdaptiveOptions):
    """What the measuring policies have."""

    highest: SigmaExpression = Field(
        default="shift(0.7)", description="Largest t_min that may be chosen; timesteps.t_min is the smallest."
    )
    every: Int = Field(default=5, ge=1, le=10**9, description="Iterations between two measurements.")
    samples: Int = Field(
        default=16, ge=2, le=10_000, description="Samples of a measurement, each of another training prompt."
    )
    smoothing: Float = Field(
        default=0.5, ge=0, lt=1, description="Share of the old t_min in the new one; 0 follows each measurement."
    )


class DisagreementOptions(MeasuredOptions):
    """Options of the timestep policy `disagreement-t-min`."""

    refine: Int = Field(default=4, ge=2, le=1000, description="Steps of the many-step solve, in steps of the rollouts.")
    tolerance: Float = Field(
        default=0.1,
        gt=0,
        le=1e6,
        description="Artifact that training may see, relative to the noise it is hidden in: at t_min and above the "
        "difference of few-step samples from many-step ones is at most so many standard deviations of the noise.",
    )


class DsmGapOptions(MeasuredOptions):
    """Options of the timestep policy `dsm-gap-t-min`."""

    samples: Int = Field(
        default=32, ge=2, le=10_000, description="Samples of a measurement, each of another training prompt."
    )
    start: SigmaExpression = Field(default="shift(0.3)", description="t_min until a preference is at work.")
    below: Float = Field(default=0.25, gt=0, lt=1, description="Share of the preference's work that lies below t_min.")
    bins: Int = Field(default=20, ge=2, le=100, description="Times at which the gap is measured, from 0 to 1.")
    threshold: Float = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description="No preference is at work while the policy's error exceeds the base's nowhere by more than this "
        "share.",
    )

"""Options of the built-in components. Does not import torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Int, Options

__all__ = [
    "ClippedOptions", "ConcentratedOptions", "InverseDsmOptions", "MinRangeOptions", "SoftmaxOptions",
    "StratifiedOptions", "TopKOptions", "WeightedOptions",
]  # fmt: skip


class SoftmaxOptions(Options):
    """Options of the weighting `softmax`."""

    temperature: Float = Field(default=0.5, gt=0, le=1e6, description="Temperature of the softmax over |A|.")


class TopKOptions(Options):
    """Options of the weighting `top-k`."""

    k: Int = Field(default=4, ge=1, le=10_000, description="Members per side; limited by the size of the smaller side.")


class ClippedOptions(Options):
    """Options of the weighting `clipped`."""

    limit: Float = Field(default=1.0, gt=0, le=1e6, description="Maximum weight.")


class MinRangeOptions(Options):
    """Options of the weighting `min-range`."""

    smallest: Float = Field(
        default=0.05,
        ge=0,
        le=1e9,
        description="Smallest difference of the highest and the lowest reward of a group that is trained on.",
    )


class ConcentratedOptions(Options):
    """Options of the weighting `concentrated`."""

    limit: Float = Field(
        default=1.5,
        gt=0,
        le=1e6,
        description="Largest distance of a reward from the group's mean, in the group's standard deviations.",
    )


class WeightedOptions(Options):
    """Options of the timestep policies `uniform` and `sampler-steps`."""

    weights: Literal["none", "sigma", "one-minus-sigma", "step-noise"] = Field(
        default="none",
        description="Weight of the loss at each time: none, sigma, 1 - sigma, or the noise of Flow-GRPO's random step "
        "that begins there or before, sqrt(sigma / (1 - sigma) * -dsigma). Scaled to a mean of 1.",
    )
    weights_power: Float = Field(default=1.0, gt=0, le=100, description="Power to which the weight is raised.")

    @model_validator(mode="after")
    def _power_of_weights(self) -> Self:
        if self.weights == "none" and self.weights_power != 1:
            raise ValueError("`weights_power` has no effect because `weights` is none; choose weights, or remove it")
        return self


class StratifiedOptions(WeightedOptions):
    """Options of the timestep policy `stratified`."""

    power: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Times are drawn with a density proportional to sigma to this power; 0 is uniform.",
    )


class InverseDsmOptions(Options):
    """Options of the timestep policy `inverse-dsm`."""

    within: Literal["uniform", "stratified", "sampler-steps"] = Field(
        default="uniform", description="How times are drawn: as by the timestep policy of this name."
    )
    power: Float = Field(default=1.0, gt=0, le=100, description="Power to which 1 / E dsm is raised.")
    every: Int = Field(default=20, ge=1, le=10**9, description="Number of iterations between measurements.")
    samples: Int = Field(
        default=16, ge=1, le=10_000, description="Samples of a measurement, each of another training prompt."
    )
    points: Int = Field(
        default=8, ge=1, le=1000, description="Number of times in [t_min, t_max] at which the error is measured."
    )

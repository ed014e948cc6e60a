"""Options of the built-in components. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options

__all__ = [
    "ClippedOptions", "ConcentratedOptions", "MinRangeOptions", "SoftmaxOptions", "StratifiedOptions", "TopKOptions",
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


class StratifiedOptions(Options):
    """Options of the timestep policy `stratified`."""

    power: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Times are drawn with a density proportional to sigma to this power; 0 is uniform.",
    )

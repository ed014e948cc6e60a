"""Options of the built-in components. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options

__all__ = ["ClippedOptions", "SoftmaxOptions", "TopKOptions"]


class SoftmaxOptions(Options):
    """Options of the weighting `softmax`."""

    temperature: Float = Field(default=0.5, gt=0, le=1e6, description="Temperature of the softmax over |A|.")


class TopKOptions(Options):
    """Options of the weighting `top-k`."""

    k: Int = Field(default=4, ge=1, le=10_000, description="Members per side; limited by the size of the smaller side.")


class ClippedOptions(Options):
    """Options of the weighting `clipped`."""

    limit: Float = Field(default=1.0, gt=0, le=1e6, description="Maximum weight.")

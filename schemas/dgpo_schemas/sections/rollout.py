"""The section `rollout`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Float, Int, StrictModel, Use, UseBlock
from dgpo_schemas.sigma import Shift

__all__ = ["RolloutSection"]


class RolloutSection(StrictModel):
    """How groups of samples are drawn."""

    sampler: Use = Field(default=UseBlock(use="flow-dpmpp"), description="Sampler: a name, or `use` with `options`.")
    steps: Int = Field(default=10, ge=1, le=1000, description="Solver steps a sample.")
    shift: Shift = Field(
        default="auto",
        description="Time shift k: sigma becomes k*sigma / (1 + (k-1)*sigma). `auto` is the model's own, which may "
        "depend on the resolution and the number of steps; a number takes its place.",
    )
    guidance: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Classifier-free guidance scale of the rollouts; 1 means none, at no cost.",
    )
    group_size: Int = Field(
        default=24, le=10_000, description="G: samples of one prompt that are compared with each other."
    )
    groups: Int = Field(default=24, ge=1, le=100_000, description="Groups (prompts) an iteration.")
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Samples drawn at once; by default all. Any size gives the same samples.",
    )
    merge_adapter: bool = Field(
        default=False,
        description="Sample with the adapter added into the weights, at the cost of the base model. The same up to "
        "rounding, which in bfloat16 weights swallows small changes: then samples are a little nearer to the base.",
    )
    resolution: Int | Annotated[list[Int], Field(min_length=2, max_length=2)] = Field(
        default=512, description="Side in pixels, or [height, width]. Prompts may have a size of their own instead."
    )

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution[0], self.resolution[1]

"""The section `rollout`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Float, Int, StrictModel, Use, UseBlock
from dgpo_schemas.sigma import Shift

__all__ = ["ExploreSection", "GuidanceInterval", "RolloutSection"]

GuidanceInterval = Annotated[list[Annotated[Float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]
"""[low, high] in sigma; 1 is noise and 0 is data."""


class ExploreSection(StrictModel):
    """Settings of the candidates of each prompt, of which the best and the worst become its group (Sol-RL, arXiv
    2604.06916)."""

    candidates: Int = Field(
        ge=2, le=10_000, description="Number of candidates per prompt; at least rollout.group_size."
    )
    steps: Int = Field(ge=1, le=1000, description="Number of solver steps per candidate; at most rollout.steps.")
    best: Int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Number of members of a group that are the best candidates; the others are the worst. Default: "
        "half of rollout.group_size, rounded down.",
    )


class RolloutSection(StrictModel):
    """Settings of the rollouts, which generate groups of samples."""

    sampler: Use = Field(default=UseBlock(use="flow-dpmpp"), description="Sampler: a name, or `use` with `options`.")
    steps: Int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Number of solver steps per sample (`num_inference_steps` in diffusers).",
    )
    shift: Shift = Field(
        default="auto",
        description="Time shift k of the noise schedule: sigma becomes k*sigma / (1 + (k-1)*sigma). `auto` uses the "
        "model's own shift, which may depend on the resolution and the number of steps.",
    )
    guidance: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Classifier-free guidance scale of the rollouts (`guidance_scale` in diffusers); 1 disables "
        "guidance and its extra forward passes.",
    )
    guidance_interval: GuidanceInterval | None = Field(
        default=None,
        description="Guide only solver steps with low <= sigma <= high, given as [low, high]; other steps use the "
        "conditional prediction alone and run the model on half as many rows. Default: guide all steps.",
    )
    group_size: Int = Field(default=24, le=10_000, description="Group size G: number of samples per prompt.")
    groups: Int = Field(default=24, ge=1, le=100_000, description="Number of groups (prompts) per iteration.")
    explore: ExploreSection | None = Field(
        default=None,
        description="Draw more candidates per prompt in few solver steps, and train on the best and the worst of them, "
        "drawn again from the same noise in rollout.steps. Default: train on all samples that are drawn.",
    )
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Number of samples generated at once; default: on a GPU whole groups of together at most 32 "
        "samples, so that rewards score them while the next ones are generated; on the CPU all. It does not affect the "
        "samples.",
    )
    merge_adapter: bool = Field(
        default=False,
        description="Merge the adapter into the weights while sampling, which makes sampling as fast as with the base "
        "model. Samples agree up to rounding, which changes a bfloat16 weight by at most 1/256 of itself: small "
        "updates are lost, and samples are slightly closer to the base model's.",
    )
    resolution: Int | Annotated[list[Int], Field(min_length=2, max_length=2)] = Field(
        default=512,
        description="Side length in pixels, or [height, width]. A prompt with its own `size` overrides it.",
    )

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution[0], self.resolution[1]

    @property
    def rounds(self) -> list[tuple[int, int]]:
        """(samples per prompt, solver steps) of each round of sampling in an iteration: of the candidates, if there
        are any, and of the groups."""
        explore = [] if self.explore is None else [(self.explore.candidates, self.explore.steps)]
        return [*explore, (self.group_size, self.steps)]

    @property
    def best(self) -> int:
        """Number of members of a group that are the best candidates, if there are candidates."""
        given = None if self.explore is None else self.explore.best
        return self.group_size // 2 if given is None else given

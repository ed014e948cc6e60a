"""Options of the video rewards (does not import torch or numpy)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options, Use

__all__ = ["FramesOptions", "MotionOptions"]


class FramesOptions(Options):
    """Options of the reward `frames`."""

    reward: Use = Field(description="Image reward: a name, or `use` with `options`.")
    frames: Literal["first", "middle", "last", "all"] | Annotated[Int, Field(ge=1, le=10_000)] = Field(
        default=4,
        description="Frames to score: first, middle, last, all, or n for every n-th frame, starting at the first.",
    )
    aggregate: Literal["mean", "min"] = Field(
        default="mean",
        description="How the values of the frames are combined: their mean or their minimum.",
    )


class MotionOptions(Options):
    """Options of the reward `motion`."""

    enough: Float | None = Field(
        default=None,
        gt=0,
        description="Target motion in pixels per frame: the value is motion / enough, clipped to [0, 1]. By default "
        "the value is the motion itself.",
    )

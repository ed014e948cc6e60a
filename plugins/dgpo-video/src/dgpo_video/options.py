"""Options of this plugin's parts. Light: no torch, no numpy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import Float, Int, Options, Use

__all__ = ["FramesOptions", "MotionOptions"]


class FramesOptions(Options):
    """Which image reward, on which frames, and how their values become one."""

    reward: Use = Field(description="The image reward: a name, or `use` with `options`.")
    frames: Literal["first", "middle", "last", "all"] | Annotated[Int, Field(ge=1, le=10_000)] = Field(
        default=4,
        description="Frames that it is shown: first, middle, last, all, or n for every n-th from the first.",
    )
    aggregate: Literal["mean", "min"] = Field(
        default="mean",
        description="A video's value: the mean over these frames, or the worst of them.",
    )


class MotionOptions(Options):
    """When a video moves enough."""

    enough: Float | None = Field(
        default=None,
        gt=0,
        description="Motion, in pixels a frame, from which more is worth no more: the value is then the share of it, "
        "in [0, 1]. By default the motion itself.",
    )

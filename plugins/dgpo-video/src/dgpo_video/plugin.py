"""What dgpo-video declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_rewards"]

dgpo_contract = 3


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """For any video."""
    return [
        Component(
            name="frames",
            summary="An image reward on frames of a video: the first, middle, last, every n-th or all; mean or minimum",
            implementation="dgpo_video.frames:Frames",
            options="dgpo_video.options:FramesOptions",
            adapts=("video", "image"),
        ),
        Component(
            name="motion",
            summary="How much moves, in pixels a frame, without labels: a monitor against videos that stand still",
            implementation="dgpo_video.motion:Motion",
            options="dgpo_video.options:MotionOptions",
        ),
    ]

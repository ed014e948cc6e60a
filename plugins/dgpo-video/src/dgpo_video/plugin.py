"""Plugin declarations of dgpo-video. Do not import torch or numpy here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_rewards"]

dgpo_contract = 3


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the video rewards."""
    return [
        Component(
            name="frames",
            summary="Image reward on frames of a video: first, middle, last, every n-th or all; mean or minimum",
            implementation="dgpo_video.frames:Frames",
            options="dgpo_video.options:FramesOptions",
            adapts=("video", "image"),
        ),
        Component(
            name="motion",
            summary="Amount of motion in pixels per frame, without labels: a monitor against static videos",
            implementation="dgpo_video.motion:Motion",
            options="dgpo_video.options:MotionOptions",
        ),
    ]

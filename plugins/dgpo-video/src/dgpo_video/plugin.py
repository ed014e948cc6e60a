"""What dgpo-video declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Part

__all__ = ["dgpo_prompt_sources", "dgpo_rewards"]


@hookimpl
def dgpo_rewards() -> Sequence[Part]:
    """Two for any video, one for the miniature."""
    return [
        Part(
            name="frames",
            summary="An image reward on frames of a video: the first, middle, last, every n-th or all; mean or minimum",
            implementation="dgpo_video.frames:Frames",
            options="dgpo_video.options:FramesOptions",
            adapts=("video", "image"),
        ),
        Part(
            name="motion",
            summary="How much moves, in pixels a frame, without labels: a guard against videos that stand still",
            implementation="dgpo_video.motion:Motion",
            options="dgpo_video.options:MotionOptions",
        ),
        Part(
            name="miniature-motion",
            summary="Whether a clip of the video miniature shows the shape, colour and direction that were asked for",
            implementation="dgpo_video.miniature.motion:MiniatureMotion",
            options="dgpo_video.options:MiniatureMotionOptions",
        ),
    ]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Part]:
    """The prompts of the world of moving shapes."""
    summary = 'Prompts about moving shapes ("a red circle moving left"), disjoint train and held-out splits'
    return [
        Part(
            "miniature-video",
            summary,
            "dgpo_video.miniature.prompts:MiniatureVideoPrompts",
            "dgpo_video.options:MiniatureVideoPromptsOptions",
        )
    ]

"""Options of the backbone `wan-i2v` (does not import torch)."""

from __future__ import annotations

from pydantic import field_validator

from dgpo_wan.options import COMPRESSION, WanOptions

__all__ = ["ImageToVideoOptions"]


class ImageToVideoOptions(WanOptions):
    """Options of Wan's image-to-video models: those of Wan, for more than one frame."""

    @field_validator("frames")
    @classmethod
    def _more_than_the_image(cls, frames: int) -> int:
        if frames == 1:
            raise ValueError(
                f"1 frame is not possible: the first frame is the condition image; the fewest are {1 + COMPRESSION}"
            )
        return frames

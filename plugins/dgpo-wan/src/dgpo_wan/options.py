"""Options of the backbone (light: no torch)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import ANYTIME, Int

__all__ = ["COMPRESSION", "WanOptions"]

COMPRESSION = 4
"""Frames that one latent frame stands for, but for the first, which stands for one."""


class WanOptions(DiffusersOptions):
    """What is particular to Wan; the checkpoint, LoRA and precision stand in `backbone` itself."""

    frames: Int = Field(
        default=33,
        ge=1,
        le=10_000,
        json_schema_extra={"examples": [1, 17, 33, 49, 81]},
        description="Frames of a video: 4 k + 1, because the autoencoder takes one frame and then four at a time. "
        "Wan was made for 81 (5 seconds at 16 a second); 33 is usual in post-training; 1 gives images of one frame.",
    )
    text_length: Int = Field(
        default=512,
        ge=1,
        le=512,
        description="UMT5 tokens of a prompt (diffusers' max_sequence_length). Wan was trained with 512: padding is "
        "part of what it attends to, so a shorter length changes what it draws.",
    )
    decode_chunk: Int = Field(
        default=1,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Videos in one call of the autoencoder's decoder.",
    )
    expert: Literal["high", "low"] = Field(
        default="high",
        description="Which of Wan 2.2's two transformers is trained: the one for high noise (content and motion) or "
        "the one for low noise (detail). Checkpoints with one transformer take no notice.",
    )

    @field_validator("frames")
    @classmethod
    def _whole_latent_frames(cls, frames: int) -> int:
        over = (frames - 1) % COMPRESSION
        if over:
            below = frames - over
            raise ValueError(
                f"{frames} frames are not possible: Wan takes 1 frame and then {COMPRESSION} at a time, so the number "
                f"is 4 k + 1; the nearest are {below} and {below + COMPRESSION}"
            )
        return frames

"""Options of the backbone `wan` (does not import torch)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_diffusers.options import MOST_FRAMES, VideoOptions
from dgpo_schemas.base import Int

__all__ = ["COMPRESSION", "Expert", "WanOptions"]

COMPRESSION = 4
"""Temporal compression of the autoencoder: frames per latent frame, except for the first, which encodes one frame."""


Expert = Literal["high", "low"]
"""Transformer of Wan 2.2 A14B for high noise, or for low noise."""


class WanOptions(VideoOptions):
    """Options of Wan. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    compression = COMPRESSION

    frames: Int = Field(
        default=33,
        ge=1,
        le=MOST_FRAMES,
        json_schema_extra={"examples": [1, 17, 33, 49, 81]},
        description="Number of frames per video (`num_frames` in diffusers), of the form 4 k + 1. Wan was trained with "
        "81 frames (5 seconds at 16 fps); 33 is common in post-training; 1 generates single images.",
    )
    text_length: Int = Field(
        default=512,
        ge=1,
        le=512,
        description="Number of UMT5 tokens per prompt (`max_sequence_length` in diffusers). Wan was trained with 512 "
        "and attends to padding, so another length changes the videos.",
    )
    expert: Expert = Field(
        default="high",
        description="Transformer of Wan 2.2 to train: the one for high noise (content and motion), or the one for low "
        "noise (detail). It has no effect for checkpoints with one transformer.",
    )

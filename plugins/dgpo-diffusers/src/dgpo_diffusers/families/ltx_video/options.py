"""Options of the backbone `ltx-video` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import MOST_FRAMES, VideoOptions
from dgpo_schemas.base import ANYTIME, Float, Int

__all__ = ["LTXVideoOptions"]

COMPRESSION = 8
"""Temporal compression of the autoencoder: frames per latent frame, except for the first, which encodes one frame."""


class LTXVideoOptions(VideoOptions):
    """Options of LTX-Video. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    compression = COMPRESSION

    frames: Int = Field(
        default=49,
        ge=1,
        le=MOST_FRAMES,
        json_schema_extra={"examples": [1, 25, 49, 97, 121, 161]},
        description="Number of frames per video (`num_frames` in diffusers), of the form 8 k + 1. diffusers' pipeline "
        "has 161 frames by default; 1 generates single images.",
    )
    fps: Float = Field(
        default=25.0,
        gt=0,
        le=120,
        json_schema_extra={"examples": [24, 25, 30]},
        description="Frames per second (`frame_rate` in diffusers), an input of the transformer: the same frames at "
        "another rate are another video.",
    )
    text_length: Int | None = Field(
        default=None,
        ge=1,
        le=512,
        json_schema_extra={"examples": [128, 256]},
        description="Number of T5 tokens per prompt (`max_sequence_length` in diffusers). Default: that of the "
        "checkpoint's pipeline, 128, or 256 for 0.9.5 and later. Before 0.9.5, T5 attends to padding: another length "
        "changes the videos.",
    )
    decode_timestep: Float = Field(
        default=0.05,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Time that the autoencoder's decoder is told, for checkpoints whose decoder denoises "
        "(`timestep_conditioning`, 0.9.1 and later); without effect for others.",
    )
    decode_noise: Float = Field(
        default=0.025,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Share of noise in the latents that such a decoder is given (`decode_noise_scale` in diffusers). "
        "The noise is always the same, so that rewards of a sample do not depend on chance.",
    )

"""What image-to-video checkpoints must have."""

from __future__ import annotations

from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["TEXT_LENGTH", "check_text_length", "image_to_video"]

TEXT_LENGTH = 512
"""diffusers' WanAttnProcessor takes the last 512 tokens for the text, and those before it for the image."""


def image_to_video(pipeline: Any, config: Any) -> str | None:
    """See `dgpo_wan.checks.Inputs`: noisy latents, alone or with a mask and the latents of the condition image."""
    channels, beside = pipeline.vae.config.z_dim, pipeline.config.expand_timesteps
    wanted = channels if beside else 2 * channels + COMPRESSION
    if config.in_channels != wanted:
        text = "; for text-to-video, set use: wan" if config.in_channels == channels else ""
        what = "latents" if beside else f"latents, a mask of {COMPRESSION} and the latents of an image"
        return (
            f"takes {config.in_channels} channels, but {wanted} are {what} of an autoencoder with {channels} channels: "
            f"it is not image-to-video{text}"
        )
    if config.pos_embed_seq_len is not None:
        return "takes a first and a last frame (pos_embed_seq_len); the backbone wan-i2v gives the first one only"
    encoder = pipeline.image_encoder
    width = None if encoder is None else encoder.config.hidden_size
    if config.image_dim is not None and config.image_dim != width:
        there = "there is no image_encoder" if width is None else f"image_encoder gives {width}"
        return f"takes image embeddings of width {config.image_dim} (image_dim), but {there}"
    return None


def check_text_length(config: Any, length: int) -> None:
    """Raise UserError for a `text_length` with which a transformer would take text tokens for those of the image."""
    if config.image_dim is not None and length != TEXT_LENGTH:
        raise UserError(
            f"backbone.options.text_length: {length} is not possible with this checkpoint, whose transformer tells "
            f"image tokens from text tokens by their number; allowed is {TEXT_LENGTH}"
        )

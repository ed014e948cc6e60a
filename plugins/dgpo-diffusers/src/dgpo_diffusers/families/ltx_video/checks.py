"""Checks of LTX-Video checkpoints whose components load one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_diffusers.families.ltx_video.options import COMPRESSION
from dgpo_schemas.problems import show

__all__ = ["check_ltx_video"]


def check_ltx_video(pipeline: Any, directory: Path) -> None:
    """Raise UserError if components do not match each other, or for unsupported statistics of latents."""
    config, vae = pipeline.transformer.config, pipeline.vae
    allowed = {"in_channels": vae.config.latent_channels, "out_channels": vae.config.latent_channels}
    allowed |= {"patch_size": 1, "patch_size_t": 1, "caption_channels": pipeline.text_encoder.config.d_model}
    for name, value in allowed.items():
        if config[name] != value:
            raise UserError(
                f"backbone.checkpoint: {directory}/transformer/config.json: {name} is {show(config[name])}; allowed is "
                f"{value} with the models beside it"
            )
    if vae.temporal_compression_ratio != COMPRESSION:
        raise UserError(
            f"backbone.checkpoint: {directory}/vae encodes {vae.temporal_compression_ratio} frames in a latent frame; "
            f"allowed is {COMPRESSION}"
        )
    if not (bool(vae.latents_mean.isfinite().all()) and bool((vae.latents_std > 0).all())):
        raise UserError(
            f"backbone.checkpoint: {directory}/vae: latents_mean and latents_std must be finite numbers, latents_std "
            "above 0"
        )

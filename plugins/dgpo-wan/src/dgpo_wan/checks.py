"""What the parts of a Wan checkpoint must have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["check_wan"]


def check_wan(pipeline: Any, directory: Path) -> None:
    """Raise UserError for parts that do not fit each other, or text-to-video."""
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        transformer = getattr(pipeline, name)
        if transformer is None:
            continue
        config = transformer.config
        if config.in_channels != vae.z_dim or config.image_dim is not None:
            raise UserError(
                f"backbone.checkpoint: {directory}/{name} takes {config.in_channels} channels"
                f"{' and an image' if config.image_dim is not None else ''}, the autoencoder gives {vae.z_dim}: it is "
                "not text-to-video"
            )
        if config.patch_size[0] != 1:
            raise UserError(
                f"backbone.checkpoint: {directory}/{name} joins {config.patch_size[0]} latent frames into one patch; "
                "the backbone wan knows patches of one frame"
            )
    if vae.scale_factor_temporal != COMPRESSION:
        raise UserError(
            f"backbone.checkpoint: {directory}/vae makes one latent frame of {vae.scale_factor_temporal}; the backbone "
            f"wan knows {COMPRESSION}"
        )
    if not len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim:
        raise UserError(
            f"backbone.checkpoint: {directory}/vae/config.json has {len(vae.latents_mean)} latents_mean and "
            f"{len(vae.latents_std)} latents_std for {vae.z_dim} channels"
        )

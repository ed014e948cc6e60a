"""Consistency checks for the components of a Wan checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["check_wan"]


def check_wan(pipeline: Any, directory: Path) -> None:
    """Raise UserError for components that are inconsistent or not for text-to-video."""
    for problem in _problems(pipeline):
        raise UserError(f"backbone.checkpoint: {directory}/{problem}")


def _problems(pipeline: Any) -> Iterator[str]:
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        if (transformer := getattr(pipeline, name)) is None:
            continue
        config = transformer.config
        if config.in_channels != vae.z_dim or config.image_dim is not None:
            image = "" if config.image_dim is None else " and an image"
            yield (
                f"{name} takes {config.in_channels} channels{image}, the autoencoder has {vae.z_dim}: not a "
                "text-to-video checkpoint"
            )
        if config.patch_size[0] != 1:
            joined = config.patch_size[0]
            yield f"{name} joins {joined} latent frames into one patch; the backbone wan supports patches of one frame"
    if (frames := vae.scale_factor_temporal) != COMPRESSION:
        yield f"vae encodes {frames} frames as one latent frame; the backbone wan supports {COMPRESSION}"
    means, deviations = len(vae.latents_mean), len(vae.latents_std)
    if not means == deviations == vae.z_dim:
        yield f"vae/config.json has {means} latents_mean and {deviations} latents_std for {vae.z_dim} channels"

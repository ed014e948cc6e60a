"""What the parts of a Wan checkpoint must have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["check_wan"]


def check_wan(pipeline: Any, directory: Path) -> None:
    """Raise UserError for parts that do not fit each other, or text-to-video."""
    for wrong in _misfits(pipeline):
        raise UserError(f"backbone.checkpoint: {directory}/{wrong}")


def _misfits(pipeline: Any) -> Iterator[str]:
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        if (transformer := getattr(pipeline, name)) is None:
            continue
        config = transformer.config
        if config.in_channels != vae.z_dim or config.image_dim is not None:
            image = "" if config.image_dim is None else " and an image"
            yield (
                f"{name} takes {config.in_channels} channels{image}, the autoencoder gives {vae.z_dim}: it is not "
                "text-to-video"
            )
        if config.patch_size[0] != 1:
            joined = config.patch_size[0]
            yield f"{name} joins {joined} latent frames into one patch; the backbone wan knows patches of one frame"
    if (frames := vae.scale_factor_temporal) != COMPRESSION:
        yield f"vae makes one latent frame of {frames}; the backbone wan knows {COMPRESSION}"
    means, deviations = len(vae.latents_mean), len(vae.latents_std)
    if not means == deviations == vae.z_dim:
        yield f"vae/config.json has {means} latents_mean and {deviations} latents_std for {vae.z_dim} channels"

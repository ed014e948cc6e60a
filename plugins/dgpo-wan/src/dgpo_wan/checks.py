"""What the parts of a Wan checkpoint must have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["check_wan", "text_to_video"]

Inputs = Callable[[Any, Any], str | None]
"""From the pipeline and a transformer's configuration to what is wrong with the transformer's inputs, or None."""


def check_wan(pipeline: Any, directory: Path, backbone: str, inputs: Inputs) -> None:
    """Raise UserError for parts that do not fit each other, or the backbone, which is named in messages."""
    for wrong in _misfits(pipeline, f"the backbone {backbone} knows", inputs):
        raise UserError(f"backbone.checkpoint: {directory}/{wrong}")


def text_to_video(pipeline: Any, config: Any) -> str | None:
    """`Inputs` of a text-to-video transformer: noisy latents alone."""
    channels = pipeline.vae.config.z_dim
    if config.in_channels == channels and config.image_dim is None:
        return None
    image = "" if config.image_dim is None else " and an image"
    return f"takes {config.in_channels} channels{image}, the autoencoder gives {channels}: it is not text-to-video"


def _misfits(pipeline: Any, known: str, inputs: Inputs) -> Iterator[str]:
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        if (transformer := getattr(pipeline, name)) is None:
            continue
        config = transformer.config
        if wrong := inputs(pipeline, config):
            yield f"{name} {wrong}"
        if config.patch_size[0] != 1:
            yield f"{name} joins {config.patch_size[0]} latent frames into one patch; {known} patches of one frame"
    if (frames := vae.scale_factor_temporal) != COMPRESSION:
        yield f"vae makes one latent frame of {frames}; {known} {COMPRESSION}"
    means, deviations = len(vae.latents_mean), len(vae.latents_std)
    if not means == deviations == vae.z_dim:
        yield f"vae/config.json has {means} latents_mean and {deviations} latents_std for {vae.z_dim} channels"

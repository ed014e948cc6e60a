"""Consistency checks for the components of a Wan checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_wan.options import COMPRESSION

__all__ = ["check_wan", "latent_frames", "text_to_video"]

Inputs = Callable[[Any, Any], str | None]
"""From the pipeline and a transformer's configuration to what is wrong with the transformer's inputs, or None."""


def check_wan(pipeline: Any, directory: Path, backbone: str, inputs: Inputs) -> None:
    """Raise UserError for components that are inconsistent or not for the backbone, which is named in messages."""
    for problem in _problems(pipeline, f"the backbone {backbone} supports", inputs):
        raise UserError(f"backbone.checkpoint: {directory}/{problem}")


def text_to_video(pipeline: Any, config: Any) -> str | None:
    """`Inputs` of a text-to-video transformer: noisy latents only."""
    channels = pipeline.vae.config.z_dim
    if config.in_channels == channels and config.image_dim is None:
        return None
    image = "" if config.image_dim is None else " and an image"
    return f"takes {config.in_channels} channels{image}, the autoencoder has {channels}: not a text-to-video checkpoint"


def latent_frames(frames: int, limit: int) -> int:
    """Return the number of latent frames of a video of `frames` frames. Raises UserError for more than `limit`, of
    which the transformer embeds positions."""
    found = 1 + (frames - 1) // COMPRESSION
    if found > limit:
        raise UserError(
            f"backbone.options.frames: {frames} exceeds the position embeddings of this checkpoint; the maximum is "
            f"{1 + (limit - 1) * COMPRESSION}"
        )
    return found


def _problems(pipeline: Any, supported: str, inputs: Inputs) -> Iterator[str]:
    vae = pipeline.vae.config
    for name in ("transformer", "transformer_2"):
        if (transformer := getattr(pipeline, name)) is None:
            continue
        config = transformer.config
        if problem := inputs(pipeline, config):
            yield f"{name} {problem}"
        if config.patch_size[0] != 1:
            yield f"{name} joins {config.patch_size[0]} latent frames into one patch; {supported} patches of one frame"
    if (frames := vae.scale_factor_temporal) != COMPRESSION:
        yield f"vae encodes {frames} frames as one latent frame; {supported} {COMPRESSION}"
    means, deviations = len(vae.latents_mean), len(vae.latents_std)
    if not means == deviations == vae.z_dim:
        yield f"vae/config.json has {means} latents_mean and {deviations} latents_std for {vae.z_dim} channels"

"""Validation of Qwen-Image 2.1 checkpoints."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_schemas.problems import is_number, show

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index

__all__ = ["check_qwen_image_2_1", "suggested_times"]

LEVELS = 5
"""Of the autoencoder, whose factor is 16 in QwenImage21Pipeline."""


def check_qwen_image_2_1(pipeline: Any, directory: Path) -> None:
    """Raise UserError if the components do not match each other or QwenImage21Pipeline."""
    config, vae = pipeline.transformer.config, pipeline.vae.config
    width = pipeline.text_encoder.config.get_text_config().hidden_size
    for name, found, allowed in (
        ("transformer/config.json: in_channels", config.in_channels, vae.z_dim),
        ("transformer/config.json: patch_size", config.patch_size, 1),
        ("transformer/config.json: context_in_dim", config.context_in_dim, width),
        ("vae/config.json: the length of dim_mult", len(vae.dim_mult), LEVELS),
        ("vae/config.json: patch_size", vae.patch_size, None),
        ("vae/config.json: out_channels", vae.out_channels, 4),  # with alpha
        ("vae/config.json: the length of latents_mean", len(vae.latents_mean), vae.z_dim),
        ("vae/config.json: the length of latents_std", len(vae.latents_std), vae.z_dim),
    ):
        if found != allowed:
            raise UserError(
                f"backbone.checkpoint: {directory}/{name} is {show(found)}; allowed is {show(allowed)} with the "
                "components beside it"
            )


def suggested_times(index: Index) -> tuple[float, ...] | None:
    """Return the times that a checkpoint suggests, without the final 0, or None. Raises UserError for other values."""
    found = index.data.get("sample_sigmas")
    if found is None:
        return None
    if isinstance(found, list) and found and all(is_number(time) for time in found):
        times = tuple(map(float, found))
        if times[0] <= 1 and times[-1] > 0 and all(time > later for time, later in pairwise(times)):
            return times
    raise UserError(
        f"backbone.checkpoint: {index.path}: sample_sigmas is {show(found)}; allowed is null, or a list of descending "
        "numbers that are above 0 and at most 1"
    )

"""A tiny random SDXL checkpoint, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import NOISE_LEVELS, save_seeded, text_encoders, tiny_autoencoder, tiny_clip

__all__ = ["make_tiny_sdxl"]


def make_tiny_sdxl(directory: str | Path, *, seed: int = 0, unet: dict[str, Any] | None = None) -> Path:
    """Write a random SDXL pipeline: a UNet of two levels (8 and 16 channels, transformers on the second), an
    autoencoder of factor 4, CLIPs of the widths 8 and 16 that read letter by letter.

    unet: more settings of it. The same arguments give the same weights, and the global random state is left alone.
    Returns the directory as a Path.
    """

    def make() -> Any:
        settings: dict[str, Any] = {
            "sample_size": 16,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 2),
            "norm_num_groups": 4,
            "cross_attention_dim": 8 + 16,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        }
        return library_class("StableDiffusionXLPipeline")(
            **text_encoders(tiny_clip(8, projection=False), tiny_clip(16)),
            unet=diffusers.UNet2DConditionModel(**settings | (unet or {})).eval(),
            vae=tiny_autoencoder(scaling_factor=0.1303, force_upcast=True, quant=True),
            scheduler=diffusers.EulerDiscreteScheduler(**NOISE_LEVELS, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )

    return save_seeded(directory, seed, make)

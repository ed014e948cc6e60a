"""Help for tests: tiny, random, complete checkpoints of the families, each made offline in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_autoencoder, tiny_clip, tiny_t5

__all__ = ["NOISE_LEVELS", "make_tiny_flux", "make_tiny_sdxl"]

NOISE_LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's."""


def make_tiny_flux(directory: str | Path, *, schnell: bool = False, seed: int = 0) -> Path:
    """Write a random FLUX.1-dev pipeline, or one as FLUX.1-schnell: without embedded guidance, its times not shifted.

    The transformer has one double block and two single ones of the width 32; images have sides that are multiples of
    8. Prompts are read letter by letter, by CLIP 32 of them. The same arguments give the same weights, and the global
    random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        shift = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
        return library_class("FluxPipeline")(
            transformer=diffusers.FluxTransformer2DModel(
                in_channels=4 * 4,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                guidance_embeds=not schnell,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            vae=tiny_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
            **text_encoders(tiny_clip(16, projection=False), tiny_t5(32)),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        )

    return save_seeded(directory, seed, make)


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

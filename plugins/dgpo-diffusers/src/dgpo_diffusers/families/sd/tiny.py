"""Tiny random Stable Diffusion checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import NOISE_LEVELS, save_seeded, text_encoders, tiny_autoencoder, tiny_clip

__all__ = ["make_tiny_sd"]


def make_tiny_sd(
    directory: str | Path, *, second: bool = False, seed: int = 0, unet: dict[str, Any] | None = None
) -> Path:
    """Write a random Stable Diffusion 1.5 pipeline, or one like 2.1: DDIM with `v_prediction`, linear layers around
    the UNet's transformers.

    The UNet has two levels (8 and 16 channels, transformers on the first), the autoencoder the factor 8, and CLIP the
    width 16; it reads 32 letters. unet: more settings of the UNet. The same arguments give the same weights, and the
    global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        settings: dict[str, Any] = {
            "sample_size": 64,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": (2, 4) if second else 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "use_linear_projection": second,
            "upcast_attention": second,
        }
        # Values of the published scheduler_config.json, and PNDM's and DDIM's own for what these leave out.
        noise: dict[str, Any] = {**NOISE_LEVELS, "steps_offset": 1, "set_alpha_to_one": False}
        return library_class("StableDiffusionPipeline")(
            **text_encoders(tiny_clip(16, projection=False)),
            unet=diffusers.UNet2DConditionModel(**settings | (unet or {})).eval(),
            vae=tiny_autoencoder(factor=8, scaling_factor=0.1822, quant=True),
            scheduler=diffusers.DDIMScheduler(**noise, clip_sample=False, prediction_type="v_prediction")
            if second
            else diffusers.PNDMScheduler(**noise, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return save_seeded(directory, seed, make)

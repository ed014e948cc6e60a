"""Tiny random FLUX.1 checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_autoencoder, tiny_clip, tiny_t5

__all__ = ["make_tiny_flux"]


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

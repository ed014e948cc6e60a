"""Test helper: writes a tiny, random, complete Stable Diffusion 3 checkpoint, offline, in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_autoencoder, tiny_clip, tiny_t5

__all__ = ["make_tiny_checkpoint"]


def make_tiny_checkpoint(
    directory: str | Path,
    *,
    layers: int = 2,
    width: int = 16,
    pos_embed_max_size: int = 8,
    t5: bool = False,
    clip_tokens: int = 32,
    shift: float = 3.0,
    seed: int = 0,
) -> Path:
    """Write a random SD3 pipeline with the features of SD3.5-M: query-key norms, dual attention in the first block.

    The transformer has `layers` blocks of `width` (two heads) on patches of 2x2 latents, for images of up to
    8 * pos_embed_max_size pixels per side (64 by default). Each of the first `clip_tokens` letters of a prompt is a
    token. Without `t5` the third text encoder is absent. The same arguments give the same weights; the global random
    state is not changed. Returns the directory as a Path.
    """

    def make() -> Any:
        return library_class("StableDiffusion3Pipeline")(
            transformer=SD3Transformer2DModel(
                sample_size=pos_embed_max_size * 2,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=layers,
                attention_head_dim=width // 2,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=width,
                pooled_projection_dim=32,
                pos_embed_max_size=pos_embed_max_size,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ).eval(),
            vae=tiny_autoencoder(sample_size=8 * pos_embed_max_size, scaling_factor=1.5305, shift_factor=0.0609),
            **text_encoders(
                tiny_clip(16, clip_tokens), tiny_clip(16, clip_tokens), tiny_t5(32) if t5 else (None, None)
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        )

    return save_seeded(directory, seed, make)

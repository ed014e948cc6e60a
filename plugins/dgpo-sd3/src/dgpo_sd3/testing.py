"""Help for tests: a tiny, random, complete Stable Diffusion 3 checkpoint, made offline in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, tiny_autoencoder, tiny_clip, tiny_t5, tiny_t5_tokenizer

__all__ = ["make_tiny_checkpoint"]


def make_tiny_checkpoint(
    directory: str | Path,
    *,
    layers: int = 2,
    width: int = 16,
    latent_channels: int = 4,
    vae_factor: int = 4,
    pos_embed_max_size: int = 8,
    text_width: int = 16,
    text_tokens: int = 32,
    t5: bool = False,
    shift: float = 3.0,
    seed: int = 0,
) -> Path:
    """Write a random SD3 pipeline with the parts of SD3.5-M: query-key norms, dual attention in the first block.

    The transformer has `layers` blocks of `width` (two heads) on patches of 2x2 latents; pictures of up to
    2 * vae_factor * pos_embed_max_size pixels a side (64 by default; a power of two for vae_factor). Prompts are read
    letter by letter, `text_tokens` of them. Without `t5` the third text encoder is absent. The same arguments give
    the same weights, and the global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        transformer = SD3Transformer2DModel(
            sample_size=pos_embed_max_size * 2,
            patch_size=2,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_layers=layers,
            attention_head_dim=width // 2,
            num_attention_heads=2,
            joint_attention_dim=2 * text_width,
            caption_projection_dim=width,
            pooled_projection_dim=2 * text_width,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = tiny_autoencoder(
            latent_channels,
            vae_factor,
            2 * vae_factor * pos_embed_max_size,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        first, second = (tiny_clip(text_width, text_tokens) for _ in range(2))
        return library_class("StableDiffusion3Pipeline")(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=vae,
            text_encoder=first[0],
            tokenizer=first[1],
            text_encoder_2=second[0],
            tokenizer_2=second[1],
            text_encoder_3=tiny_t5(2 * text_width) if t5 else None,
            tokenizer_3=tiny_t5_tokenizer() if t5 else None,
        )

    return save_seeded(directory, seed, make)

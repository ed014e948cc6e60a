"""Help for tests: a tiny, random, complete FLUX.1 checkpoint, made offline in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, tiny_autoencoder, tiny_clip, tiny_t5, tiny_t5_tokenizer

__all__ = ["make_tiny_flux"]


def make_tiny_flux(
    directory: str | Path,
    *,
    schnell: bool = False,
    layers: int = 1,
    single_layers: int = 2,
    width: int = 32,
    latent_channels: int = 4,
    vae_factor: int = 4,
    text_width: int = 16,
    text_tokens: int = 32,
    seed: int = 0,
) -> Path:
    """Write a random FLUX.1-dev pipeline, or one as FLUX.1-schnell: without embedded guidance, its times not shifted.

    The transformer has `layers` double blocks and `single_layers` single ones of `width` (two heads; a multiple of 16);
    pictures have sides that are multiples of 2 * vae_factor (a power of two). Prompts are read letter by letter, by
    CLIP `text_tokens` of them. The same arguments give the same weights, and the global random state is left alone.
    Returns the directory as a Path.
    """

    def make() -> Any:
        head = width // 2
        transformer = FluxTransformer2DModel(
            in_channels=4 * latent_channels,
            num_layers=layers,
            num_single_layers=single_layers,
            attention_head_dim=head,
            num_attention_heads=2,
            joint_attention_dim=2 * text_width,
            pooled_projection_dim=text_width,
            guidance_embeds=not schnell,
            axes_dims_rope=(head // 4, head // 4, head // 2),
        )
        factors = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
        quant = {"use_quant_conv": False, "use_post_quant_conv": False}
        vae = tiny_autoencoder(latent_channels, vae_factor, 64, **factors, **quant)
        clip, tokenizer = tiny_clip(text_width, text_tokens, projection=False)
        shift = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
        return library_class("FluxPipeline")(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**shift),
            vae=vae,
            text_encoder=clip,
            tokenizer=tokenizer,
            text_encoder_2=tiny_t5(2 * text_width),
            tokenizer_2=tiny_t5_tokenizer(),
        )

    return save_seeded(directory, seed, make)

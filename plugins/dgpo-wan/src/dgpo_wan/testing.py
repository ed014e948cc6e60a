"""Test helper: writes a tiny, random, complete Wan checkpoint, offline, in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_t5

__all__ = ["make_tiny_checkpoint"]


def make_tiny_checkpoint(
    directory: str | Path,
    *,
    layers: int = 2,
    boundary: float | None = None,
    expand_timesteps: bool = False,
    tied: bool = True,
    shift: float = 3.0,
    seed: int = 0,
) -> Path:
    """Write a random Wan pipeline with the components of Wan 2.1, for videos of up to 512 pixels per side.

    The transformer has `layers` blocks of width 24 on patches of 1x2x2 latents; the autoencoder compresses 8 times in
    space and 4 times in time. Each letter of a prompt is a token. boundary: sigma between two transformers, as in Wan
    2.2 A14B, or None for one transformer; expand_timesteps: the setting of Wan 2.2 5B; tied: False for a text encoder
    saved like the published ones. The same arguments give the same weights; the global random state is not changed.
    Returns the directory as a Path.
    """

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=48,
            num_layers=layers,
            rope_max_seq_len=32,
        ).eval()

    def make() -> Any:
        first, (encoder, tokenizer) = transformer(), tiny_t5(16, UMT5Config, UMT5EncoderModel, tie_word_embeddings=tied)
        encoder.set_input_embeddings(encoder.get_input_embeddings())
        return library_class("WanPipeline")(
            transformer=first,
            **text_encoders((encoder, tokenizer)),
            # Distinct statistics, so that tests notice if they are omitted or mixed up.
            vae=AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                attn_scales=[],
                temperal_downsample=[False, True, True],
                latents_mean=[0.1 * (i - 1) for i in range(4)],
                latents_std=[1.0 + 0.2 * i for i in range(4)],
            ).eval(),
            transformer_2=None if boundary is None else transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            boundary_ratio=boundary,
            expand_timesteps=expand_timesteps,
        )

    return save_seeded(directory, seed, make)

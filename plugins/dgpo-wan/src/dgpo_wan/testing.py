"""Test helper: writes a tiny, random, complete Wan checkpoint, offline, in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_t5

__all__ = ["CHANNELS", "WIDTH", "make_tiny_checkpoint", "tiny_parts", "tiny_transformer"]

WIDTH = 24
"""Of the tiny transformer."""
CHANNELS = 4
"""Of the tiny autoencoder."""


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

    def make() -> Any:
        first = tiny_transformer(layers)
        return library_class("WanPipeline")(
            transformer=first,
            **tiny_parts(tied=tied, shift=shift),
            transformer_2=None if boundary is None else tiny_transformer(layers),
            boundary_ratio=boundary,
            expand_timesteps=expand_timesteps,
        )

    return save_seeded(directory, seed, make)


def tiny_transformer(layers: int = 2, *, in_channels: int = CHANNELS, **config: Any) -> WanTransformer3DModel:
    """Return a random transformer of the width WIDTH; config: more settings of WanTransformer3DModel."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=in_channels,
        out_channels=CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=48,
        num_layers=layers,
        rope_max_seq_len=32,
        **config,
    ).eval()


def tiny_parts(*, tied: bool = True, shift: float = 3.0) -> dict[str, Any]:
    """Return the other parts that all pipelines have: text encoder, tokenizer, autoencoder and scheduler."""
    encoder, tokenizer = tiny_t5(16, UMT5Config, UMT5EncoderModel, tie_word_embeddings=tied)
    encoder.set_input_embeddings(encoder.get_input_embeddings())
    return {
        **text_encoders((encoder, tokenizer)),
        # Statistics of no special kind, so that leaving them out, or mixing them up, shows.
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            latents_mean=[0.1 * (i - 1) for i in range(CHANNELS)],
            latents_std=[1.0 + 0.2 * i for i in range(CHANNELS)],
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
    }

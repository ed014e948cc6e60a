"""Tiny random Lumina-Image 2.0 checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits, punctuation
from typing import Any

import diffusers
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, tiny_autoencoder

__all__ = ["make_tiny_lumina2"]

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
WIDTH = 16


def make_tiny_lumina2(directory: str | Path, *, dynamic: bool = False, seed: int = 0) -> Path:
    """Write a random Lumina-Image 2.0 pipeline, with a static shift of 6, or with a dynamic one.

    The transformer has two blocks and a refiner of width 48, whose six heads of queries share two of keys and values;
    images have sides that are multiples of 16. Gemma 2 has three layers of width 16 and reads letter by letter. The
    same arguments give the same weights, and the global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        pieces = (*SPECIAL, "▁", *ascii_letters, *digits, *punctuation)
        tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
            max_position_embeddings=512,
            initializer_range=0.3,  # random weights of the usual size hardly tell prompts apart
        )
        return library_class("Lumina2Pipeline")(
            transformer=diffusers.Lumina2Transformer2DModel(
                sample_size=16,
                in_channels=4,
                hidden_size=48,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=6,
                num_kv_heads=2,
                multiple_of=16,
                axes_dim_rope=(4, 2, 2),
                axes_lens=(300, 32, 64),
                cap_feat_dim=WIDTH,
            ).eval(),
            vae=tiny_autoencoder(factor=8, scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=Gemma2Model(config).eval(),
            tokenizer=tokenizer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=dynamic),
        )

    return save_seeded(directory, seed, make)

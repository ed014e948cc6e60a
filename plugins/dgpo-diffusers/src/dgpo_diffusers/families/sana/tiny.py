"""A tiny random SANA checkpoint, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tokenizers.processors import TemplateProcessing
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from dgpo_diffusers.families.sana.backbone import instruction_of
from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import CHARACTERS, save_seeded, text_encoders

__all__ = ["make_tiny_sana"]


def make_tiny_sana(directory: str | Path, *, seed: int = 0) -> Path:
    """Write a random SANA pipeline.

    The transformer has two blocks of width 16, the autoencoder a factor of 4. Images have sides that are multiples of
    4. Prompts are read letter by letter, the lines of the pipeline's instruction as one token each. The same arguments
    give the same weights, and the global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        return library_class("SanaPipeline")(
            transformer=diffusers.SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=8,
                num_layers=2,
                num_cross_attention_heads=4,
                cross_attention_head_dim=4,
                cross_attention_dim=16,
                caption_channels=16,
                sample_size=32,
                timestep_scale=0.7,
            ).eval(),
            vae=_autoencoder(levels=3),
            **text_encoders(_gemma2(16)),
            scheduler=diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )

    return save_seeded(directory, seed, make)


def _autoencoder(levels: int) -> diffusers.AutoencoderDC:
    """The last level has the attention of the published ones; the others have convolutions."""
    kinds = ["ResBlock"] * (levels - 1) + ["EfficientViTBlock"]
    scales: list[tuple[int, ...]] = [()] * (levels - 1) + [(5,)]
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes |= {
            f"{side}_block_types": kinds,
            f"{side}_block_out_channels": (8,) * levels,
            f"{side}_layers_per_block": (1,) * levels,
            f"{side}_qkv_multiscales": scales,
        }
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
        **sizes,
    ).eval()


def _gemma2(width: int) -> tuple[Gemma2Model, GemmaTokenizer]:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *CHARACTERS, *CHARACTERS[:26].upper()]
    tokenizer = GemmaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    # Otherwise the pipeline's instruction would have more than a thousand tokens.
    tokenizer.add_tokens([line for line in instruction_of(library_class("SanaPipeline")) if line])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=4096,
        initializer_range=0.5,  # random weights of the usual size hardly distinguish prompts
    )
    return Gemma2Model(config).eval(), tokenizer

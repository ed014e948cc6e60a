"""Help for tests: small random parts of checkpoints, made offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from dgpo_diffusers.libraries import quiet

__all__ = ["NOISE_LEVELS", "save_seeded", "text_encoders", "tiny_autoencoder", "tiny_clip", "tiny_t5"]

NOISE_LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Noise schedule of Stable Diffusion."""
CHARACTERS = ascii_lowercase + digits + punctuation


def save_seeded(directory: str | Path, seed: int, make: Callable[[], Any]) -> Path:
    """Save the pipeline that `make` makes with random weights from `seed`; the global random state is left alone."""
    directory = Path(directory)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        make().save_pretrained(directory)
    return directory


def text_encoders(*readers: tuple[Any, Any]) -> dict[str, Any]:
    """Text encoders and their tokenizers as parts of a pipeline: text_encoder, tokenizer, text_encoder_2, ..."""
    found: dict[str, Any] = {}
    for i, (encoder, tokenizer) in enumerate(readers):
        end = f"_{i + 1}" if i else ""
        found |= {f"text_encoder{end}": encoder, f"tokenizer{end}": tokenizer}
    return found


def tiny_autoencoder(
    channels: int = 4, factor: int = 4, sample_size: int = 64, *, quant: bool = False, **config: Any
) -> AutoencoderKL:
    """One level for each halving, `factor` a power of two; the usual width is 8. quant: with the two convolutions about
    the latents that older models have; config: settings of AutoencoderKL, of which scaling_factor and shift_factor
    should be of no special kind, so that mixing them up shows."""
    levels = factor.bit_length()
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=sample_size,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **config,
    ).eval()


def tiny_clip(width: int, tokens: int = 32, *, projection: bool = True) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A text encoder, and its tokenizer, which reads letter by letter."""
    names = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=tokens)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        # Random weights of the usual size hardly tell prompts apart; these do.
        initializer_factor=3.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval(), tokenizer


def tiny_t5(width: int, config: Any = T5Config, kind: Any = T5EncoderModel, **more: Any) -> tuple[Any, T5TokenizerFast]:
    """A text encoder of one layer, and its tokenizer, which reads letter by letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *((piece, -2.0) for piece in ("▁", *CHARACTERS))]
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 1, "num_heads": 2}
    return kind(config(vocab_size=len(pieces), **sizes, **more)).eval(), T5TokenizerFast(vocab=pieces, extra_ids=0)

"""Tiny random Z-Image checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded, text_encoders, tiny_autoencoder

__all__ = ["make_tiny_z_image"]

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The part of Qwen3's chat template that a single message passes through."""


def make_tiny_z_image(directory: str | Path, *, turbo: bool = False, seed: int = 0) -> Path:
    """Write a random Z-Image pipeline, or one with the scheduler of Z-Image-Turbo.

    The transformer has two blocks, and one each for image and text alone, of width 32, and nonzero padding tokens.
    Images have sides that are multiples of 8. Prompts are read byte by byte. The same arguments give the same weights,
    and the global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        transformer = diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[544, 32, 32],
        )
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token)  # zeros would hide mistakes
        return library_class("ZImagePipeline")(
            transformer=transformer.eval(),
            vae=tiny_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
            **text_encoders(_qwen3(16)),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0),
        )

    return save_seeded(directory, seed, make)


def _qwen3(width: int) -> tuple[Qwen3Model, Qwen2Tokenizer]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_window_layers=2,
        max_position_embeddings=1024,
        rope_theta=1_000_000,
        initializer_range=0.5,  # random weights of the usual size hardly distinguish prompts
    )
    return Qwen3Model(config).eval(), tokenizer

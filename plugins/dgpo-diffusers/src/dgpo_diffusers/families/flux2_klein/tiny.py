"""Tiny random FLUX.2 klein checkpoints, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded

__all__ = ["make_tiny_flux2_klein"]

WIDTH = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's chat template, for messages without tools."""


def make_tiny_flux2_klein(directory: str | Path, *, distilled: bool = False, seed: int = 0) -> Path:
    """Write a random FLUX.2 klein pipeline, base or distilled.

    The transformer has one double block and two single ones of width 32; images have sides that are multiples of 8.
    Qwen3 has 28 layers of width 16, the fewest with the hidden states that are used, and reads prompts byte by byte.
    The same arguments give the same weights, and the global random state is left alone. Returns the directory as a
    Path.
    """

    def make() -> Any:
        vocabulary = {name: i for i, name in enumerate((*sorted(ByteLevel.alphabet()), *SPECIAL))}
        tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=SPECIAL[1:])
        tokenizer.chat_template = TEMPLATE
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            initializer_range=0.3,  # random weights of the usual size hardly tell prompts apart
            bos_token_id=0,
            eos_token_id=vocabulary["<|im_end|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
        vae = diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            batch_norm_eps=3e-2,
        )
        vae.bn.running_mean.copy_(torch.randn(16))
        vae.bn.running_var.copy_(0.3 + torch.rand(16))
        return library_class("Flux2KleinPipeline")(
            transformer=diffusers.Flux2Transformer2DModel(
                in_channels=4 * 4,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * WIDTH,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            ).eval(),
            vae=vae.eval(),
            text_encoder=Qwen3ForCausalLM(config).eval(),
            tokenizer=tokenizer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            is_distilled=distilled,
        )

    return save_seeded(directory, seed, make)

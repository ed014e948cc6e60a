"""A tiny random Qwen-Image 2.1 checkpoint, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded

__all__ = ["make_tiny_qwen_image_2_1"]

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""A chat template for texts; the pipeline counts the tokens of its system message."""


def make_tiny_qwen_image_2_1(
    directory: str | Path, *, seed: int = 0, sample_sigmas: Sequence[float] | None = None
) -> Path:
    """Write a random Qwen-Image 2.1 pipeline: a transformer of two blocks of width 32, a Qwen3-VL of two layers that
    reads prompts letter by letter, an autoencoder of four channels and factor 16 with an alpha channel.

    sample_sigmas: the pipeline's default times, of some number of steps. The same arguments give the same weights, and
    the global random state is left alone. Returns the directory as a Path.
    """

    def make() -> Any:
        vocabulary = {name: i for i, name in enumerate((*sorted(ByteLevel.alphabet()), *SPECIAL))}
        tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=SPECIAL[1:])
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(patch_size=16, merge_size=1),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(patch_size=16, merge_size=1),
            chat_template=TEMPLATE,
        )
        pipeline = library_class("QwenImage21Pipeline")(
            transformer=library_class("QwenImage21Transformer2DModel")(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                context_in_dim=32,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            vae=library_class("AutoencoderKLQwenImage21")(
                base_dim=4,
                decoder_base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1, 1],
                num_res_blocks=1,
                latents_mean=[0.3, -0.2, 0.1, -0.4],
                latents_std=[1.7, 0.6, 1.2, 2.1],
            ).eval(),
            text_encoder=_text_encoder(tokenizer),
            processor=processor,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            sample_sigmas=None if sample_sigmas is None else list(sample_sigmas),
        )
        with torch.no_grad():
            # Random weights of the usual size hardly use prompts and times.
            for name, parameter in pipeline.transformer.named_parameters():
                if name.startswith(("modulation", "txt_in", "time_text_embed")):
                    parameter.mul_(3)
                if "norm" in name and parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return pipeline

    return save_seeded(directory, seed, make)


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Any:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        # Random weights of the usual size hardly tell prompts apart; these do.
        "initializer_range": 0.4,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "spatial_merge_size": 1,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    start, end, image, video = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL[3:])
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        # The final norm, which prompt embeddings are taken before, is not the identity.
        model.model.language_model.norm.weight.add_(torch.randn(32), alpha=0.5)
    return model

"""A tiny random Qwen-Image checkpoint, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from dgpo_diffusers.libraries import library_class
from dgpo_diffusers.testing import save_seeded

__all__ = ["make_tiny_qwen_image", "tiny_qwen_tokenizer"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>")
WORDS = (
    "Ġthe", "Ġimage", "Ġby", "Ġdetailing", "Ġcolor", "Ġshape", "Ġsize", "Ġtexture", "Ġquantity", "Ġtext", "Ġspatial",
    "Ġrelationships", "Ġof", "Ġobjects", "Ġand", "Ġbackground", "system", "Describe", "user", "assistant",
)  # fmt: skip
"""Words of the pipeline's chat template, each of them one token, so that its start has 34 tokens as with Qwen's own
vocabulary. Those that begin with a space (Ġ) go first: then no part of them is joined otherwise."""


def make_tiny_qwen_image(directory: str | Path, *, seed: int = 0) -> Path:
    """Write a random Qwen-Image pipeline: a transformer of two blocks of width 32, a Qwen2.5-VL of two layers that
    reads prompts letter by letter, an autoencoder of four channels and factor 4.

    The same arguments give the same weights, and the global random state is left alone. Returns the directory as a
    Path.
    """

    def make() -> Any:
        tokenizer = tiny_qwen_tokenizer()
        pipeline = library_class("QwenImagePipeline")(
            transformer=diffusers.QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=4 * 4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.3, -0.2, 0.1, -0.4],
                latents_std=[1.7, 0.6, 1.2, 2.1],
            ).eval(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
        )
        with torch.no_grad():
            # As drawn, prompts hardly reach the image, and images are nearly gray.
            for name, parameter in pipeline.transformer.named_parameters():
                if "_mod" in name or "txt_in" in name:
                    parameter.mul_(3)
            pipeline.vae.decoder.conv_out.weight.mul_(3)
        return pipeline

    return save_seeded(directory, seed, make)


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer as Qwen2's that knows the words of the chat template, and reads everything else byte by byte."""
    letters = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # of bytes that are not printed: Ġ is the space
    merges = [(word[:i], word[i]) for word in WORDS for i in range(1, len(word))]
    known = dict.fromkeys([*letters, *("".join(pair) for pair in merges)])
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(known)},
        merges=list(dict.fromkeys(merges)),
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        model_max_length=4096,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Any:
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        # Random weights of the usual size hardly tell prompts apart; these do.
        "initializer_range": 0.4,
        **ends,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    image, video = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL[3:])
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=image,
        vision_end_token_id=video,
        **ends,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()

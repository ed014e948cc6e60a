"""Test helpers: tiny checkpoints of each kind with random weights, created offline in a fraction of a second."""

from __future__ import annotations

import json
import math
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, digits, punctuation

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from dgpo_pickscore.head import WIDTHS
from dgpo_pickscore.libraries import quiet

__all__ = ["make_tiny_clip", "make_tiny_head", "make_tiny_open_clip"]

CHARACTERS = ascii_lowercase + digits + punctuation
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalization of OpenAI's CLIP, which most other models use too."""


def make_tiny_clip(
    directory: str | Path, *, side: int = 32, width: int = 16, text_tokens: int = 77, scale: float = 100, seed: int = 0
) -> Path:
    """Write a random CLIPModel with tokenizer and preprocessor_config.json to a directory, and return the directory.

    side: image side in pixels, with patches of 8; width: of the embeddings; text_tokens: maximum number of tokens, one
    per letter; scale: the logit scale. The same arguments create the same weights; the global random state does not
    change.
    """
    directory = Path(directory)
    # As in CLIP, the start and end tokens have the highest ids.
    names = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={n: i for i, n in enumerate(names)}, merges=[], model_max_length=text_tokens)
    shared = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        # With the usual initialization, embeddings of different prompts or images would hardly differ.
        "initializer_factor": 3.0,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **shared,
            vocab_size=len(names),
            max_position_embeddings=text_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        vision_config=CLIPVisionConfig(**shared, image_size=side, patch_size=8).to_dict(),
        projection_dim=width,
        logit_scale_init_value=math.log(scale),
    )
    with quiet():
        torch.default_generator.manual_seed(seed)
        CLIPModel(config).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # The format of the published file, in which sizes are plain numbers.
    preprocessor = {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": side,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    return directory


def make_tiny_head(path: str | Path, *, width: int = 16, seed: int = 0) -> Path:
    """Write a random head of the aesthetic predictor for embeddings of `width`, and return the path.

    The format is safetensors for a path with this suffix, else a pickle. All layers except for the input have their
    published widths, 0.6 MB in total.
    """
    path = Path(path)
    draws = torch.Generator().manual_seed(seed)
    sizes = (width, *WIDTHS)
    tensors = {}
    for layer, (before, after) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        tensors[f"layers.{layer}.weight"] = torch.randn(after, before, generator=draws) / math.sqrt(before)
        tensors[f"layers.{layer}.bias"] = torch.randn(after, generator=draws)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def make_tiny_open_clip(directory: str | Path, *, side: int = 32, width: int = 16, seed: int = 0) -> Path:
    """Write a random open_clip model for `model: local-dir:DIRECTORY`, and return the directory. Requires open_clip.

    The model uses CLIP's tokenizer, which open_clip includes.
    """
    open_clip = import_module("open_clip")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tower = {"width": width, "layers": 2}
    config = {
        "embed_dim": width,
        "quick_gelu": True,
        "vision_cfg": {"image_size": side, "patch_size": 8, "head_width": width // 2, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower},
    }
    with quiet():
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**config)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, directory / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (directory / "open_clip_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return directory

"""Help for tests: tiny, random, complete checkpoints of each kind, made offline in a fraction of a second."""

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

from dgpo_pickscore.libraries import quiet
from dgpo_pickscore.loading import WIDTHS

__all__ = ["make_tiny_clip", "make_tiny_head", "make_tiny_open_clip"]

CHARACTERS = ascii_lowercase + digits + punctuation
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP, which most others kept."""


def make_tiny_clip(
    directory: str | Path, *, side: int = 32, width: int = 16, text_tokens: int = 77, scale: float = 100, seed: int = 0
) -> Path:
    """Write a random CLIPModel with tokenizer and preprocessor_config.json into one directory, and return it.

    Images of side x side in patches of 8, embeddings of `width`, prompts read letter by letter, `text_tokens` of
    them, the logit scale exp(log(scale)). The same arguments give the same weights, and the global random state is
    left alone.
    """
    directory = Path(directory)
    # As in CLIP, start and end have the highest numbers.
    names = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={n: i for i, n in enumerate(names)}, merges=[], model_max_length=text_tokens)
    shared = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        # Random weights of the usual size hardly tell prompts or images apart; these do.
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
    # The form of the published file, in which sizes are plain numbers.
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
    """Write a random head of the aesthetic predictor for embeddings of `width`: safetensors, or what the ending says.

    The layers behind the first have their published widths, 0.6 MB in all. Returns the path.
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
    """Write a random model of open_clip, for `model: local-dir:DIRECTORY`, and return the directory. Needs open_clip.

    It reads with CLIP's own tokenizer, which open_clip brings with it.
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

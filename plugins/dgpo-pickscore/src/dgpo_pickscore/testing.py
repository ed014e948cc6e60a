"""Test helpers: tiny checkpoints of each kind with random weights, created offline in a fraction of a second."""

from __future__ import annotations

import json
import math
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits, punctuation
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipModel,
)
from transformers import PreTrainedTokenizerFast as TokenizersBackend

from dgpo_pickscore.head import WIDTHS
from dgpo_pickscore.images import OPENAI_MEAN, OPENAI_STD
from dgpo_pickscore.libraries import quiet

__all__ = [
    "make_tiny_clip",
    "make_tiny_head",
    "make_tiny_hps",
    "make_tiny_imagereward",
    "make_tiny_open_clip",
    "make_tiny_siglip",
]

CHARACTERS = ascii_lowercase + digits + punctuation


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
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
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
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config, state = _tiny_open_clip(side, width, seed, quick_gelu=True)
    save_file(state, directory / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD}}
    (directory / "open_clip_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return directory


def make_tiny_hps(directory: str | Path, *, side: int = 32, width: int = 16, seed: int = 0) -> Path:
    """Write random weights of `hpsv2` for `model: DIRECTORY` in the published format, with architecture.json for
    `architecture: DIRECTORY/architecture.json`, and return the directory. Requires open_clip."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config, state = _tiny_open_clip(side, width, seed)
    torch.save({"state_dict": state}, directory / "HPS_v2.1_compressed.pt")
    (directory / "architecture.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return directory


def _tiny_open_clip(side: int, width: int, seed: int, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the random weights of an open_clip model."""
    tower = {"width": width, "layers": 2}
    config = {
        "embed_dim": width,
        **options,
        "vision_cfg": {"image_size": side, "patch_size": 8, "head_width": width // 2, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower},
    }
    with quiet():
        torch.default_generator.manual_seed(seed)
        model = import_module("open_clip").CLIP(**config)
    return config, {key: value.contiguous() for key, value in model.state_dict().items()}


def make_tiny_imagereward(directory: str | Path, *, side: int = 32, width: int = 16, seed: int = 0) -> Path:
    """Write random weights of `imagereward` in the published format for `model: DIRECTORY, tokenizer: DIRECTORY`, and
    return the directory.

    width: of the text tower, which has two heads; the vision tower has two of the published width, 64, and patches of
    8. The tokenizer reads letter by letter.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    BertTokenizer(vocab={name: i for i, name in enumerate(names)}).save_pretrained(directory)
    config = {
        "vocab_size": len(names) + 2,  # two tokens of BLIP
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (directory / "med_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.save(_tiny_blip(config, side, torch.Generator().manual_seed(seed)), directory / "ImageReward.pt")
    return directory


def _tiny_blip(config: dict[str, Any], side: int, draws: torch.Generator) -> dict[str, Tensor]:
    """Return random weights with the published names, written down here: they do not follow from the loader's table."""
    width, vision, layers = config["hidden_size"], 128, range(config["num_hidden_layers"])
    inner = config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, (side // 8) ** 2 + 1, vision),
        "blip.visual_encoder.patch_embed.proj": (vision, 3, 8, 8),
        "blip.visual_encoder.norm": (vision,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "blip.text_encoder.embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "blip.text_encoder.embeddings.LayerNorm": (width,),
        "blip.vision_proj": (8, vision),
        "blip.text_proj": (8, width),
    }
    for layer in layers:
        block = f"blip.visual_encoder.blocks.{layer}"
        shapes |= {f"{block}.norm1": (vision,), f"{block}.attn.qkv": (3 * vision, vision)}
        shapes |= {f"{block}.attn.proj": (vision, vision), f"{block}.norm2": (vision,)}
        shapes |= {f"{block}.mlp.fc1": (2 * vision, vision), f"{block}.mlp.fc2": (vision, 2 * vision)}
        block = f"blip.text_encoder.encoder.layer.{layer}"
        for name, read in ((f"{block}.attention", width), (f"{block}.crossattention", vision)):
            shapes |= {f"{name}.self.query": (width, width), f"{name}.self.key": (width, read)}
            shapes |= {f"{name}.self.value": (width, read), f"{name}.output.dense": (width, width)}
            shapes |= {f"{name}.output.LayerNorm": (width,)}
        shapes |= {f"{block}.intermediate.dense": (inner, width), f"{block}.output.dense": (width, inner)}
        shapes |= {f"{block}.output.LayerNorm": (width,)}
    sizes = zip((0, 2, 4, 6, 7), pairwise((width, *WIDTHS)), strict=True)
    shapes |= {f"mlp.layers.{i}": (after, before) for i, (before, after) in sizes}
    counter = torch.arange(config["max_position_embeddings"])[None]
    tensors: dict[str, Tensor] = {"blip.text_encoder.embeddings.position_ids": counter}
    for name, shape in shapes.items():
        scale = 2 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
        drawn = torch.randn(shape, generator=draws) * scale
        if name.endswith((".weight", "_token", "_embed")):
            tensors[name] = drawn
        else:
            tensors[f"{name}.weight"] = drawn + (len(shape) == 1)  # a norm
            tensors[f"{name}.bias"] = torch.randn(shape[0], generator=draws) * 0.1
    return tensors


def make_tiny_siglip(directory: str | Path, *, side: int = 32, width: int = 16, seed: int = 0) -> Path:
    """Write a random SiglipModel with tokenizer and preprocessor_config.json to a directory, and return the directory.

    The model has 64 positions; the tokenizer reads letter by letter, distinguishes case, as those of SigLIP 2 may, and
    ends texts with <eos>.
    """
    directory = Path(directory)
    shared = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    names = ["<pad>", "<eos>", "<unk>", " ", *CHARACTERS, *ascii_uppercase]
    reader = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    reader.pre_tokenizer = Split(Regex("."), "isolated")
    reader.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    config = SiglipConfig(
        text_config={**shared, "vocab_size": len(names), "max_position_embeddings": 64, "projection_size": width,
                     "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1},
        vision_config={**shared, "image_size": side, "patch_size": 8},
    )  # fmt: skip
    with quiet():
        draws = torch.default_generator.manual_seed(seed)
        model = SiglipModel(config).eval()
        for name, value in model.state_dict().items():
            if value.dim() > 1:
                value.normal_(std=1 / math.sqrt(math.prod(value.shape[1:])), generator=draws)
            elif name.endswith("bias"):
                value.normal_(std=0.1, generator=draws)
        model.logit_scale.data.fill_(math.log(10))
        model.logit_bias.data.fill_(-1.0)
        model.save_pretrained(directory)
        TokenizersBackend(tokenizer_object=reader, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
                          padding_side="left").save_pretrained(directory)  # fmt: skip
    preprocessor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    return directory

"""Test helpers: tiny checkpoints of detectors with random weights, created offline in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    SwinConfig,
)

from dgpo_geneval.checkpoints import quiet
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.detectors.tiny_onnx import make_tiny_yolox
from dgpo_geneval.testing import COCO

__all__ = ["make_tiny_detr", "make_tiny_grounding_dino", "make_tiny_owl", "make_tiny_rt_detr", "make_tiny_yolox"]

SIDE = 64
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""BERT's numbers of these tokens, which Grounding DINO's code knows by heart."""


def _save(directory: str | Path, make: Callable[[], Any], processor: dict[str, Any], seed: int) -> Path:
    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make()
        for parameter in model.parameters():  # the usual initialization answers nearly alike to all images
            parameter.data.copy_(parameter + 0.15 * torch.randn_like(parameter))
    with quiet():
        model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def _attention(**more: int) -> dict[str, int]:
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return {**sizes, "encoder_attention_heads": 2, "decoder_attention_heads": 2, **more}


def make_tiny_rt_detr(directory: str | Path, *, classes: Sequence[str] = COCO, seed: int = 0) -> Path:
    """Write a random RT-DETR of 9 queries, which has a sigmoid per class, and return the directory.

    classes: names by class index. The same arguments create the same weights; the global random state does not change.
    """
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16],
        encoder_hidden_dim=16,
        num_queries=9,
        num_denoising=0,
        hidden_expansion=0.5,
        **_attention(d_model=16),
        **_labels(classes),
    )
    processor = {"image_processor_type": "RTDetrImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    scale = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True}
    return _save(directory, lambda: RTDetrForObjectDetection(config), processor | scale, seed)


def make_tiny_detr(directory: str | Path, *, classes: Sequence[str] = COCO, seed: int = 0) -> Path:
    """Write a random DETR of 7 queries, which has a softmax with "no object"; see `make_tiny_rt_detr`."""
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        backbone=None,
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        num_queries=7,
        **_attention(d_model=16),
        **_labels(classes),
    )
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "size": {"shortest_edge": SIDE, "longest_edge": 2 * SIDE},
        **IMAGENET,
    }
    return _save(directory, lambda: DetrForObjectDetection(config), processor, seed)


def make_tiny_grounding_dino(directory: str | Path, *, seed: int = 0) -> Path:
    """Write a random Grounding DINO of 9 queries, and return the directory. Its tokenizer knows GenEval's words, except
    for `potted` and `skateboard`, which are two tokens, and spells others in letters. See `make_tiny_rt_detr`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    words = sorted({word for name in CLASSES for word in name.split()} - {"potted", "skateboard"})
    pieces = [*ascii_lowercase, *(f"##{c}" for c in ascii_lowercase), *words, "pot", "##ted", "skate", "##board"]
    numbers = {number: token for token, number in SPECIAL.items()}
    free = iter(dict.fromkeys(pieces))
    lines = [numbers.get(number) or next(free, f"[unused{number}]") for number in range(max(numbers) + 1)]
    (directory / "vocab.txt").write_text("\n".join(lines))
    BertTokenizer(vocab=str(directory / "vocab.txt"), do_lower_case=True).save_pretrained(directory)
    swin = SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=len(lines),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        num_queries=9,
        disable_custom_kernels=True,
        **_attention(d_model=32),
    )
    processor = {
        "image_processor_type": "GroundingDinoImageProcessor",
        "size": {"shortest_edge": 2 * SIDE, "longest_edge": 4 * SIDE},  # the coarsest of its maps has strides of 64
        **IMAGENET,
    }
    return _save(directory, lambda: GroundingDinoForObjectDetection(config), processor, seed)


def make_tiny_owl(directory: str | Path, *, tokens: int = 64, seed: int = 0) -> Path:
    """Write a random OWLv2 of 16 patches, and return the directory. Its tokenizer has a token per letter, of at most
    `tokens` per query. See `make_tiny_rt_detr`."""
    names = ["<|endoftext|>", "<|startoftext|>", *ascii_lowercase, *(f"{c}</w>" for c in ascii_lowercase)]
    tokenizer = CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=tokens, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(directory)
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={
            **shared,
            "vocab_size": len(names),
            "max_position_embeddings": tokens,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 0,
        },
        vision_config={**shared, "image_size": SIDE, "patch_size": 16},
        projection_dim=16,
    )
    processor = {
        "image_processor_type": "Owlv2ImageProcessor",
        "do_pad": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return _save(directory, lambda: Owlv2ForObjectDetection(config), processor, seed)

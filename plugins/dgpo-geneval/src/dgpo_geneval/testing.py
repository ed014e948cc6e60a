"""Test helpers: a tiny Mask2Former checkpoint with random weights, created offline in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from dgpo_geneval.classes import CLASSES, RENAMED

__all__ = ["COCO", "make_tiny_mask2former"]

COCO = tuple({new: old for old, new in RENAMED.items()}.get(name, name) for name in CLASSES)
"""The 80 classes with COCO's names."""
PROCESSOR = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "do_resize": True,
    "size": {"height": 384, "width": 384},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
    "image_std": [0.2290000021457672, 0.2239999920129776, 0.22499999403953552],
}


def make_tiny_mask2former(
    directory: str | Path, *, classes: Sequence[str] = COCO, queries: int = 8, certainty: float = 60.0, seed: int = 0
) -> Path:
    """Write a random Mask2Former with an 8-channel Swin backbone, and return the directory.

    classes: names by class index; queries: number of queries; certainty: factor of the weights of the class head, whose
    random initialization returns only low scores. The same arguments create the same weights; the global random state
    does not change.
    """
    directory = Path(directory)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=queries,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.mul_(certainty)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return directory

"""The OCR score of a checkpoint of signs: Euler samples scored by the reward `ocr` of dgpo-ocr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Prompt
from dgpo_miniature.signs.world import HEIGHT, WIDTH
from dgpo_miniature.training.score import sample
from dgpo_schemas.base import UseBlock

__all__ = ["READING", "read", "sample_signs", "score"]

READING = {"min_side": 64, "detection_side": 128, "recognition_width": 96}
"""Options of the reward `ocr` for small images, as in the example run file."""


def read(images: Tensor, prompts: Sequence[dict[str, Any]]) -> Tensor:
    """Return the reward of each image [B, 3, 32, 64], float32 [B] in [0, 1]; 1 if the quoted text is read.

    Raises PluginError if dgpo-ocr is not installed.
    """
    reward = get_registry().create("reward", UseBlock(use="ocr", options=READING), device=torch.device("cpu"))
    targets = [Prompt(entry["prompt"], {"target": entry["target"]}) for entry in prompts]
    try:
        values: Tensor = reward.score(images, targets).values
    finally:
        reward.close()
    return values


def sample_signs(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> Tensor:
    """Sample images [B, 3, 32, 64] in [0, 1]; `how` is passed to `training.score.sample`."""
    return sample(pipeline, [entry["prompt"] for entry in prompts], height=HEIGHT, width=WIDTH, **how)


def score(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> dict[str, float]:
    """Return {"ocr": mean reward, "exact": fraction of images with the exact word} for one image per prompt."""
    values = read(sample_signs(pipeline, prompts, **how), prompts)
    return {"ocr": float(values.mean()), "exact": float((values == 1.0).float().mean())}

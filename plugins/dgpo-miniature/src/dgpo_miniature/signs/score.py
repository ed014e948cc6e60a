"""The OCR score of a checkpoint of signs: a few steps of the plain ODE, read by the reward `ocr` of dgpo-ocr."""

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
"""Options of the reward `ocr` for images as small as these, the same as in the example run."""


def read(images: Tensor, prompts: Sequence[dict[str, Any]]) -> Tensor:
    """The reward of each image [B, 3, 32, 64]: float32 [B] in [0, 1], 1 if the quoted text is read in it.

    Raises PluginError saying what to install where dgpo-ocr is missing.
    """
    reward = get_registry().create("reward", UseBlock(use="ocr", options=READING), device=torch.device("cpu"))
    asked = [Prompt(entry["prompt"], {"target": entry["target"]}) for entry in prompts]
    try:
        values: Tensor = reward.score(images, asked).values
    finally:
        reward.close()
    return values


def sample_signs(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> Tensor:
    """Images [B, 3, 32, 64] in [0, 1]; `how` goes to `training.score.sample`."""
    return sample(pipeline, [entry["prompt"] for entry in prompts], height=HEIGHT, width=WIDTH, **how)


def score(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> dict[str, float]:
    """{"ocr": mean reward, "exact": share of images that say the word} of one image per prompt."""
    values = read(sample_signs(pipeline, prompts, **how), prompts)
    return {"ocr": float(values.mean()), "exact": float((values == 1.0).float().mean())}

"""The score of a checkpoint of blocks: Euler samples judged by the reward `miniature-blocks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_miniature.blocks.captions import TASKS
from dgpo_miniature.blocks.reward import MiniatureBlocks
from dgpo_miniature.blocks.world import SIZE
from dgpo_miniature.options import MiniatureBlocksOptions
from dgpo_miniature.training.score import sample

__all__ = ["judge", "sample_blocks", "score"]


def sample_blocks(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> Tensor:
    """Sample images [B, 3, 16, 16] in [0, 1]; `how` is passed to `training.score.sample`."""
    return sample(pipeline, [entry["prompt"] for entry in prompts], height=SIZE, width=SIZE, **how)


def judge(images: Tensor, prompts: Sequence[dict[str, Any]], **options: bool) -> Tensor:
    """Return the reward of images [B, 3, 16, 16] in [0, 1], float32 [B]."""
    reward = MiniatureBlocks(MiniatureBlocksOptions(**options), device=torch.device("cpu"))
    values: Tensor = reward.score(images, [Prompt(entry["prompt"], entry) for entry in prompts]).values
    return values


def score(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> dict[str, float]:
    """Return the share of correct images per task, their mean as "overall", and the mean of the continuous reward as
    "nearly", for one image per prompt."""
    images = sample_blocks(pipeline, prompts, **how)
    right = judge(images, prompts)
    tasks = [entry["tag"] for entry in prompts]
    means = {name: float(right[torch.tensor([task == name for task in tasks])].mean()) for name in TASKS}
    nearly = float(judge(images, prompts, strict=False).mean())
    return {**means, "overall": sum(means.values()) / len(means), "nearly": nearly}

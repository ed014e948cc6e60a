"""The six-task score of a checkpoint: Euler samples judged by GenEval's binary score."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from dgpo_geneval.evaluator import evaluate
from dgpo_geneval.metadata import Metadata
from dgpo_miniature.captions import TASKS
from dgpo_miniature.detector import ShapeDetector, find_shapes

__all__ = ["judge", "sample", "score", "task_means"]


@torch.no_grad()
def sample(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    *,
    steps: int = 8,
    guidance: float = 1.0,
    seed: int = 0,
    shift: float | None = None,
    height: int = 64,
    width: int = 64,
) -> Tensor:
    """Sample images [B, 3, height, width] in [0, 1] with Euler steps; guidance 1 disables guidance."""
    sequence, empty_sequence, pooled, empty_pooled = pipeline.encode_prompt(
        list(prompts), None, None, max_sequence_length=0, do_classifier_free_guidance=True, device="cpu"
    )
    k = float(pipeline.scheduler.config.shift) if shift is None else shift
    times = torch.linspace(1.0, 0.0, steps + 1)
    sigmas = k * times / (1 + (k - 1) * times)
    f = pipeline.vae_scale_factor
    x = torch.randn(len(prompts), 4, height // f, width // f, generator=torch.Generator().manual_seed(seed))
    for sigma, following in pairwise(sigmas):
        time = (1000 * sigma).expand(len(x))
        velocity = pipeline.transformer(x, sequence, pooled, time, return_dict=False)[0]
        if guidance != 1.0:
            empty = pipeline.transformer(x, empty_sequence, empty_pooled, time, return_dict=False)[0]
            velocity = empty + guidance * (velocity - empty)
        x = x + (following - sigma) * velocity
    vae = pipeline.vae
    images: Tensor = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample
    return (images / 2 + 0.5).clamp(0.0, 1.0)


def judge(images: Tensor, prompts: Sequence[dict[str, Any]]) -> list[bool]:
    """Return whether each image [B, 3, 64, 64] matches the metadata of its prompt."""
    return [
        evaluate(
            Metadata.model_validate(prompt), seen, variant="geneval-official", thresholds=ShapeDetector.thresholds
        ).correct
        for prompt, seen in zip(prompts, find_shapes(images.numpy()), strict=True)
    ]


def task_means(prompts: Sequence[dict[str, Any]], correct: Sequence[bool]) -> dict[str, float]:
    """Return the mean per task, and their unweighted mean as "overall"."""
    pairs = list(zip(prompts, correct, strict=True))
    of_task = {task: [yes for prompt, yes in pairs if prompt["tag"] == task] for task in TASKS}
    means = {task: sum(yes) / len(yes) for task, yes in of_task.items() if yes}
    return {**means, "overall": sum(means.values()) / len(means)}


def score(pipeline: StableDiffusion3Pipeline, prompts: Sequence[dict[str, Any]], **how: Any) -> dict[str, float]:
    """Return the task means for one image per prompt; `how` is passed to `sample`."""
    images = sample(pipeline, [prompt["prompt"] for prompt in prompts], **how)
    return task_means(prompts, judge(images, prompts))

"""Captioned latents for training the base model, with correct and wrong captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from dgpo_miniature.captions import (
    HELDOUT_TEMPLATES,
    TASKS,
    TRAIN_TEMPLATES,
    Caption,
    all_captions,
    corrupt,
    scene_content,
    text,
)
from dgpo_miniature.world import random_scenes, render

__all__ = ["FAULT_RATES", "SHARES", "Bank", "build_bank", "content_behind"]

SHARES = {
    "single_object": 0.08,
    "two_object": 0.15,
    "counting": 0.20,
    "colors": 0.10,
    "position": 0.22,
    "color_attr": 0.25,
}
"""Fraction of each task in the training images; tasks with more distinctions have more images."""
FAULT_RATES = {
    "single_object": 0.45,
    "two_object": 0.20,
    "counting": 0.35,
    "colors": 0.45,
    "position": 0.12,
    "color_attr": 0.10,
}
"""Fraction of each task's captions in the second phase that are wrong in one clause. Easier tasks have more, so that
the base model has a similar margin for improvement in each."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Latents with their captions.

    latents float32 [N, 4, 8, 8], unit variance; tokens int64 [N, T]; faulty bool [N], whether the caption is wrong
    in one clause; task int64 [N], index into TASKS; empty int64 [T], the tokens of the empty prompt.
    """

    latents: Tensor
    tokens: Tensor
    faulty: Tensor
    task: Tensor
    empty: Tensor


def content_behind(caption: Caption, rng: Random, rate: float) -> Caption:
    """Return the content of the image for a caption; with probability `rate` it differs from the caption."""
    return corrupt(caption, rng) if rng.random() < rate else caption


@torch.no_grad()
def build_bank(
    count: int, fault_rates: Mapping[str, float], autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int
) -> Bank:
    """Return `count` captioned images as latents. Deterministic in its arguments.

    fault_rates: fraction of wrong captions per task; 0 for tasks without an entry.
    """
    rng, noise = Random(f"bank-{seed}"), np.random.default_rng([seed, 3])
    captions = {task: all_captions(task) for task in TASKS}
    templates = [*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES]
    kinds, colors, texts, faulty = [], [], [], []
    tasks = rng.choices(range(len(TASKS)), weights=[SHARES[task] for task in TASKS], k=count)
    for task in tasks:
        caption = rng.choice(captions[TASKS[task]])
        content = content_behind(caption, rng, fault_rates.get(caption.task, 0.0))
        kind, color = scene_content(content, rng)
        kinds.append(kind)
        colors.append(color)
        texts.append(text(caption, rng.choice(templates)))
        faulty.append(content != caption)
    latents = torch.empty(count, 4, 8, 8)
    for start in range(0, count, 256):
        part = slice(start, start + 256)
        scenes = random_scenes(np.array(kinds[part]), np.array(colors[part]), noise)
        images = torch.from_numpy(render(scenes)) * 2 - 1
        latents[part] = autoencoder.encode(images).latent_dist.mean
    shift, scale = float(autoencoder.config.shift_factor), float(autoencoder.config.scaling_factor)
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(texts))}
    table = tokenizer([*distinct, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Bank(
        latents=(latents - shift) * scale,
        tokens=table[torch.tensor([distinct[prompt] for prompt in texts])],
        faulty=torch.tensor(faulty),
        task=torch.tensor(tasks),
        empty=table[-1],
    )

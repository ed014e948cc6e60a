"""Captioned latents of blocks, with correct and wrong captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from dgpo_miniature.blocks.captions import (
    HELDOUT_TEMPLATES,
    NUMBERS,
    RELATIONS,
    TASKS,
    TRAIN_TEMPLATES,
    all_captions,
    corrupt,
    matching,
    text,
)
from dgpo_miniature.blocks.world import ARRANGEMENTS, COLORS, random_blocks
from dgpo_miniature.training.text import build_tokenizer

__all__ = ["FAULT_RATES", "SHARES", "TOKENS", "BlockBank", "block_tokenizer", "build_bank", "random_images"]

TOKENS = 6
"""Length of a tokenized caption: at most four words, and start and end."""
SHARES = {"one": 0.15, "two": 0.2, "count": 0.3, "position": 0.35}
"""Fraction of each task in the training images."""
FAULT_RATES = {"one": 0.5, "two": 0.45, "count": 0.45, "position": 0.4}
"""Fraction of each task's captions in the second phase that are wrong in one clause."""


@dataclass(frozen=True, slots=True)
class BlockBank:
    """Latents with their captions.

    latents float32 [N, 4, 4, 4], unit variance; tokens int64 [N, T]; empty int64 [T], the tokens of the empty prompt.
    """

    latents: Tensor
    tokens: Tensor
    empty: Tensor


def block_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with one token per word, padded to TOKENS."""
    phrases = [*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES, *RELATIONS, "one", *NUMBERS.values(), *COLORS, "and"]
    return build_tokenizer(dict.fromkeys(word for phrase in phrases for word in phrase.split()), TOKENS)


def random_images(count: int, rng: np.random.Generator) -> Tensor:
    """Return images of independent cells, half of them empty, float32 [count, 3, 16, 16] in [-1, 1]."""
    shown = rng.integers(1 + len(COLORS), size=(count, 4)) * (rng.random((count, 4)) < 0.6)
    return torch.from_numpy(random_blocks(shown, rng)) * 2 - 1


@torch.no_grad()
def build_bank(
    count: int, fault_rates: Mapping[str, float], autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int
) -> BlockBank:
    """Return `count` captioned images as latents. Deterministic in its arguments.

    fault_rates: fraction of wrong captions per task; 0 for tasks without an entry.
    """
    rng, noise = Random(f"blocks-bank-{seed}"), np.random.default_rng([seed, 3])
    captions = {task: all_captions(task) for task in TASKS}
    templates = [*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES]
    shown = np.zeros((count, 4), dtype=np.int64)
    texts = []
    for row, task in enumerate(rng.choices(TASKS, weights=[SHARES[task] for task in TASKS], k=count)):
        caption = rng.choice(captions[task])
        content = corrupt(caption, rng) if rng.random() < fault_rates.get(task, 0.0) else caption
        shown[row] = ARRANGEMENTS[noise.choice(np.flatnonzero(matching(content)))]
        texts.append(text(caption, rng.choice(templates)))
    images = torch.from_numpy(random_blocks(shown, noise)) * 2 - 1
    latents = torch.cat([autoencoder.encode(part).latent_dist.mean for part in images.split(1024)])
    shift, scale = float(autoencoder.config.shift_factor), float(autoencoder.config.scaling_factor)
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(texts))}
    table = tokenizer([*distinct, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return BlockBank(
        latents=(latents - shift) * scale,
        tokens=table[torch.tensor([distinct[prompt] for prompt in texts])],
        empty=table[-1],
    )

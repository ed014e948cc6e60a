"""Captioned latents for training the base model; captions are wrong in one word at a given rate."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import T5TokenizerFast

from dgpo_miniature.moving.captions import HELDOUT_TEMPLATES, TRAIN_TEMPLATES, all_captions, corrupt, text
from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.moving.text import TOKENS
from dgpo_miniature.moving.world import random_clips, render

__all__ = ["Bank", "Captioner", "build_bank", "normalized"]


@dataclass(frozen=True, slots=True)
class Bank:
    """latents float32 [N, C, f, h, w], unit variance; content int64 [N], index into `all_captions()`."""

    latents: Tensor
    content: Tensor


def normalized(autoencoder: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Normalize latents [N, C, f, h, w] of the autoencoder to mean 0 and standard deviation 1 per channel."""
    mean, std = (
        torch.tensor(numbers).view(1, -1, 1, 1, 1)
        for numbers in (autoencoder.config.latents_mean, autoencoder.config.latents_std)
    )
    return (latents - mean) / std


@torch.no_grad()
def build_bank(count: int, autoencoder: AutoencoderKLWan, seed: int) -> Bank:
    """Return `count` clips with equally frequent contents. Deterministic in its arguments."""
    rng = np.random.default_rng([seed, 3])
    captions = all_captions()
    content = np.arange(count) % len(captions)
    indices = np.array(
        [(SHAPES.index(c.shape), COLORS.index(c.color), DIRECTIONS.index(c.direction)) for c in captions]
    )
    parts = []
    for start in range(0, count, 128):
        shape, color, direction = indices[content[start : start + 128]].T
        videos = torch.from_numpy(render(random_clips(shape, color, direction, rng))) * 2 - 1
        parts.append(autoencoder.encode(videos.transpose(1, 2).contiguous()).latent_dist.mean)
    return Bank(normalized(autoencoder, torch.cat(parts)), torch.from_numpy(content))


class Captioner:
    """Draws tokens of captions for contents; a fraction is wrong in one word, another is empty."""

    def __init__(self, tokenizer: T5TokenizerFast, seed: int) -> None:
        self.captions = all_captions()
        self.templates = (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES)
        texts = [text(caption, template) for caption in self.captions for template in self.templates]
        encoded = tokenizer([*texts, ""], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        self.tokens, self.masks = encoded.input_ids, encoded.attention_mask
        self.index = {caption: i for i, caption in enumerate(self.captions)}
        self.rng = Random(f"captions-{seed}")

    def __call__(self, content: Tensor, fault_rate: float, empty_share: float) -> tuple[Tensor, Tensor]:
        """Return (tokens, mask), int64 [B, T], for contents [B]."""
        rows = [self._row(int(index), fault_rate, empty_share) for index in content]
        return self.tokens[rows], self.masks[rows]

    def _row(self, content: int, fault_rate: float, empty_share: float) -> int:
        if self.rng.random() < empty_share:
            return len(self.tokens) - 1
        if self.rng.random() < fault_rate:
            content = self.index[corrupt(self.captions[content], self.rng)]
        return content * len(self.templates) + self.rng.randrange(len(self.templates))

"""Captioned latents of signs, with correct and wrong captions."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from dgpo_miniature.signs.captions import HELDOUT_TEMPLATES, LENGTH, LETTERS, TRAIN_TEMPLATES, misspell, text
from dgpo_miniature.signs.world import HEIGHT, WIDTH, random_signs, render
from dgpo_miniature.training.text import build_tokenizer

__all__ = ["TOKENS", "Faults", "SignBank", "build_bank", "random_images", "sign_tokenizer", "vocabulary"]

TOKENS = 12
"""Length of a tokenized caption: at most nine tokens and three letters, including start and end."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of captions: probability `replaced` of a wrong letter, `swapped` of two exchanged letters."""

    replaced: float = 0.0
    swapped: float = 0.0


@dataclass(frozen=True, slots=True)
class SignBank:
    """Latents with their captions.

    latents float32 [N, 4, 4, 8], unit variance; tokens int64 [N, T]; empty int64 [T], the tokens of the empty prompt.
    """

    latents: Tensor
    tokens: Tensor
    empty: Tensor


def vocabulary() -> list[str]:
    """Return every word and quotation mark of the templates, in a fixed order."""
    parts = (part for template in (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES) for part in template.split())
    return list(dict.fromkeys('"' if part == '"{}"' else part for part in parts))


def sign_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with one token per word of a template and per quoted letter, padded to TOKENS."""
    return build_tokenizer(vocabulary(), TOKENS)


def random_words(count: int, rng: np.random.Generator) -> list[str]:
    """Return random words."""
    return ["".join(LETTERS[place] for place in row) for row in rng.integers(len(LETTERS), size=(count, LENGTH))]


def random_images(count: int, rng: np.random.Generator) -> Tensor:
    """Return images of random words, float32 [count, 3, 32, 64] in [-1, 1]."""
    return torch.from_numpy(render(random_signs(random_words(count, rng), rng))) * 2 - 1


@torch.no_grad()
def build_bank(count: int, faults: Faults, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int) -> SignBank:
    """Return `count` captioned images as latents. Deterministic in its arguments."""
    rng, noise = Random(f"signs-bank-{seed}"), np.random.default_rng([seed, 3])
    templates = (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES)
    words = random_words(count, noise)
    texts = [text(word, rng.choice(templates)) for word in words]
    written = [misspell(word, rng, replaced=faults.replaced, swapped=faults.swapped) for word in words]
    latents = torch.empty(count, 4, HEIGHT // 8, WIDTH // 8)
    for start in range(0, count, 256):
        part = slice(start, start + 256)
        images = torch.from_numpy(render(random_signs(written[part], noise))) * 2 - 1
        latents[part] = autoencoder.encode(images).latent_dist.mean
    shift, scale = float(autoencoder.config.shift_factor), float(autoencoder.config.scaling_factor)
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(texts))}
    table = tokenizer([*distinct, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return SignBank(
        latents=(latents - shift) * scale,
        tokens=table[torch.tensor([distinct[prompt] for prompt in texts])],
        empty=table[-1],
    )

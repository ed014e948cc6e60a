"""Captioned latents of signs: some captions say what is written, some say it wrongly."""

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
"""Length of a tokenized caption: nine tokens and three letters at most, start and end included."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How captions are wrong: each letter another one with probability `replaced`, two swapped with `swapped`."""

    replaced: float = 0.0
    swapped: float = 0.0


@dataclass(frozen=True, slots=True)
class SignBank:
    """Latents and the captions they came with.

    latents float32 [N, 4, 4, 8], unit variance; tokens int64 [N, T]; empty int64 [T], the tokens of the empty prompt.
    """

    latents: Tensor
    tokens: Tensor
    empty: Tensor


def vocabulary() -> list[str]:
    """Every word and mark of the captions outside the quotes, in a fixed order."""
    parts = (part for template in (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES) for part in template.split())
    return list(dict.fromkeys('"' if part == '"{}"' else part for part in parts))


def sign_tokenizer() -> CLIPTokenizer:
    """A tokenizer with one token per word of a template and per letter of what is quoted, padded to TOKENS."""
    return build_tokenizer(vocabulary(), TOKENS)


def random_words(count: int, rng: np.random.Generator) -> list[str]:
    """Any words of the world."""
    return ["".join(LETTERS[place] for place in row) for row in rng.integers(len(LETTERS), size=(count, LENGTH))]


def random_images(count: int, rng: np.random.Generator) -> Tensor:
    """Images of random words, float32 [count, 3, 32, 64] in [-1, 1]."""
    return torch.from_numpy(render(random_signs(random_words(count, rng), rng))) * 2 - 1


@torch.no_grad()
def build_bank(count: int, faults: Faults, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int) -> SignBank:
    """`count` captioned images as latents; the same arguments give the same bank."""
    rng, noise = Random(f"signs-bank-{seed}"), np.random.default_rng([seed, 3])
    templates = (*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES)
    said = random_words(count, noise)
    texts = [text(word, rng.choice(templates)) for word in said]
    written = [misspell(word, rng, replaced=faults.replaced, swapped=faults.swapped) for word in said]
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

"""Vocabulary, tokenizers, and the two tiny CLIP text encoders that the SD3 format requires."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_lowercase

from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from dgpo_miniature.captions import HELDOUT_TEMPLATES, NUMBERS, RELATIONS, TRAIN_TEMPLATES
from dgpo_miniature.world import CLASSES, COLORS

__all__ = ["TOKENS", "WIDTH", "build_text_encoder", "build_tokenizer", "words"]

TOKENS = 12
"""Length of a tokenized prompt; the longest has ten words, plus start and end tokens."""
WIDTH = 64
"""Hidden size of each text encoder."""


def words() -> list[str]:
    """Return every word of the prompts, in a fixed order."""
    phrases = [*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES, *RELATIONS, *NUMBERS.values(), *COLORS, *CLASSES, "and"]
    plurals = [name + ("es" if name.endswith("s") else "s") for name in CLASSES]
    return list(dict.fromkeys(word for phrase in [*phrases, *plurals] for word in phrase.split()))


def byte_pairs(vocabulary: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and merges that encode each given word as one token and other words by letters."""
    tokens = dict.fromkeys([*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)])
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary:
        # Built from the right: only word endings are merged, so the merges of one word do not split another.
        tail = f"{word[-1]}</w>"
        tokens[tail] = None
        for letter in reversed(word[:-1]):
            merges[(letter, tail)] = None
            tail = letter + tail
            tokens[tail] = None
    names = ["<|startoftext|>", "<|endoftext|>", *tokens]
    return {name: index for index, name in enumerate(names)}, list(merges)


def build_tokenizer(vocabulary: Iterable[str] | None = None, length: int = TOKENS) -> CLIPTokenizer:
    """Return a tokenizer with one token per word of the vocabulary (default: shapes), padded to `length`."""
    tokens, merges = byte_pairs(words() if vocabulary is None else vocabulary)
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=length)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Return an untrained encoder with two layers: SD3 uses the second to last layer and the projected end token."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)

"""The tokenizer, with one token per word of the captions, and a UMT5 text encoder of two layers."""

from __future__ import annotations

from string import ascii_lowercase

from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from dgpo_miniature.moving.captions import HELDOUT_TEMPLATES, TRAIN_TEMPLATES
from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES

__all__ = ["TOKENS", "WIDTH", "build_text_encoder", "build_tokenizer", "words"]

TOKENS = 12
"""Number of tokens per prompt with padding, the backbone's `text_length`; the longest caption has ten."""
WIDTH = 64
BLANK = "▁"
"""The prefix of a word in sentencepiece."""


def words() -> list[str]:
    """Return every word of the captions, without duplicates."""
    phrases = [*TRAIN_TEMPLATES, *HELDOUT_TEMPLATES, *COLORS, *SHAPES, *DIRECTIONS]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split() if word != "{}"))


def build_tokenizer() -> T5TokenizerFast:
    """Return a Unigram tokenizer with one token per known word; other words are encoded by letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    known = [(BLANK + word, -1.0) for word in words()]
    letters = [(letter, -10.0) for letter in (BLANK, *ascii_lowercase)]
    # The piece of a one-letter word ("▁a") differs from that of the letter, so there are no duplicates.
    return T5TokenizerFast(vocab=[*special, *known, *letters], extra_ids=0, model_max_length=TOKENS)


def build_text_encoder(tokenizer: T5TokenizerFast) -> UMT5EncoderModel:
    """Return an untrained encoder."""
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        tie_word_embeddings=True,
    )
    return UMT5EncoderModel(config)

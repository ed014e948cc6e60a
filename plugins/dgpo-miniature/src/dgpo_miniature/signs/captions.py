"""Captions of signs: templates around a quoted word, and misspellings for faulty training data."""

from __future__ import annotations

from itertools import product
from random import Random

__all__ = ["HELDOUT_TEMPLATES", "LENGTH", "LETTERS", "TRAIN_TEMPLATES", "all_words", "misspell", "text"]

LETTERS = "ABCEHKLNPRSU"
"""Letters of the words. None resembles a digit or another letter, and no word of a template ends in two of them: such
an ending would be a single token, also inside the quotes (see `training.text`)."""
LENGTH = 3
"""Number of letters of a word."""
TRAIN_TEMPLATES = ('a sign that says "{}"', 'a card that says "{}"', 'a board that says "{}"')
HELDOUT_TEMPLATES = ('a page that reads "{}"',)


def all_words() -> list[str]:
    """Return every word, in a fixed order."""
    return ["".join(letters) for letters in product(LETTERS, repeat=LENGTH)]


def text(word: str, template: str) -> str:
    """Return the caption, for example 'a sign that says "CAB"'."""
    return template.format(word)


def misspell(word: str, rng: Random, *, replaced: float, swapped: float) -> str:
    """Return a misspelling of the word.

    Each letter is replaced by another one with probability `replaced`; then, with probability `swapped`, two
    neighboring letters are exchanged (no effect if they are equal).
    """
    letters = [rng.choice(LETTERS.replace(c, "")) if rng.random() < replaced else c for c in word]
    if rng.random() < swapped:
        at = rng.randrange(len(letters) - 1)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)

"""What a caption of a sign says: its words around a quoted word, and how badly captioned data misspells that word."""

from __future__ import annotations

from itertools import product
from random import Random

__all__ = ["HELDOUT_TEMPLATES", "LENGTH", "LETTERS", "TRAIN_TEMPLATES", "all_words", "misspell", "text"]

LETTERS = "ABCEHKLNPRSU"
"""Letters of the words. None can be taken for a digit or for another letter, and no word of a template ends in two of
them: such an ending would be one token, also inside the quotes (see `training.text`)."""
LENGTH = 3
"""Letters of a word."""
TRAIN_TEMPLATES = ('a sign that says "{}"', 'a card that says "{}"', 'a board that says "{}"')
HELDOUT_TEMPLATES = ('a page that reads "{}"',)


def all_words() -> list[str]:
    """Every word, in a fixed order."""
    return ["".join(letters) for letters in product(LETTERS, repeat=LENGTH)]


def text(word: str, template: str) -> str:
    """The caption, for example 'a sign that says "CAB"'."""
    return template.format(word)


def misspell(word: str, rng: Random, *, replaced: float, swapped: float) -> str:
    """The word of an image that the caption describes wrongly.

    Each letter is another one with probability `replaced`, then two neighbors change places with probability
    `swapped` (alike ones to no effect).
    """
    letters = [rng.choice(LETTERS.replace(c, "")) if rng.random() < replaced else c for c in word]
    if rng.random() < swapped:
        at = rng.randrange(len(letters) - 1)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)

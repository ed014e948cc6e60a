"""Prompts about signs, with the text in double quotes, split into train and held-out.

The splits share neither templates nor words. A word is held out if the indices of its letters in `LETTERS` add up to a
multiple of HELDOUT_EVERY. So every letter is held out equally often in every position, every pair of letters occurs in
training, and the anagrams of a held-out word are held out too. The base model was trained on every word and template;
"held-out" means not used for preference training.

If a split has fewer distinct prompts than requested, its texts repeat; they never occur in the other split.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.types import Prompt
from dgpo_miniature.signs.captions import HELDOUT_TEMPLATES, LETTERS, TRAIN_TEMPLATES, all_words, text

__all__ = ["SignPrompts", "Split", "prompts", "words"]

Split = Literal["train", "heldout"]
HELDOUT_EVERY = 6


def words(split: Split) -> list[str]:
    """Return every word of a split, in a fixed order: 1440 for training, 288 held out."""
    every = [(word, sum(map(LETTERS.index, word)) % HELDOUT_EVERY == 0) for word in all_words()]
    return [word for word, held in every if held == (split == "heldout")]


def prompts(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` prompts of a split, such as {"prompt": 'a sign that says "CAB"', "target": "CAB"}.

    Every word occurs once, with a random template, before one repeats. Deterministic: a smaller count returns a prefix
    of a larger one. Raises ValueError for an unknown split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}; the splits are 'train' and 'heldout'")
    templates, deck = TRAIN_TEMPLATES if split == "train" else HELDOUT_TEMPLATES, words(split)
    out: list[dict[str, Any]] = []
    for lap in range(-(-count // len(deck))):
        rng = Random(f"signs {split} {seed} {lap}")
        for word in rng.sample(deck, len(deck)):
            out.append({"prompt": text(word, rng.choice(templates)), "target": word})
    return out[:count]


class SignPrompts(PromptSource):
    """The prompt source `miniature-signs`."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of one split; the same options always give the same prompts."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        found = prompts(split, count, self.options.seed)
        return [Prompt(entry["prompt"], {"target": entry["target"]}) for entry in found]

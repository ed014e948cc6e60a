"""Prompts about moving shapes, split into train and held-out.

The splits share neither templates ("moving left" and "that moves left") nor contents: a quarter of the 48 combinations
of shape, color and direction is held out, with each color and direction three times and each shape four times. The base
model was trained on every word, template and combination; "held-out" means not used for preference training.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.types import Prompt
from dgpo_miniature.moving.captions import HELDOUT_TEMPLATES, TRAIN_TEMPLATES, Caption, all_captions, text
from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.options import MiniatureVideoPromptsOptions

__all__ = ["MiniatureVideoPrompts", "Split", "captions", "prompts"]

Split = Literal["train", "heldout"]


def is_heldout(caption: Caption) -> bool:
    """Return whether a content is held out: one in four, a Latin square per shape."""
    place = SHAPES.index(caption.shape) + COLORS.index(caption.color) + DIRECTIONS.index(caption.direction)
    return place % 4 == 0


def captions(split: Split) -> list[Caption]:
    """Return every content of a split, in a fixed order: 36 for training, 12 held out."""
    return [caption for caption in all_captions() if is_heldout(caption) == (split == "heldout")]


def prompts(split: Split, count: int, seed: int = 0) -> list[Prompt]:
    """Return `count` prompts of a split. Each combination of content and template occurs once before one repeats.

    Deterministic: a smaller count returns a prefix of a larger one.
    """
    templates = TRAIN_TEMPLATES if split == "train" else HELDOUT_TEMPLATES
    choices = [(caption, template) for caption in captions(split) for template in templates]
    found: list[Prompt] = []
    for lap in range(-(-count // len(choices))):
        shuffled = Random(f"{split} {seed} {lap}").sample(choices, len(choices))
        found += [Prompt(text(caption, template), caption.metadata()) for caption, template in shuffled]
    return found[:count]


class MiniatureVideoPrompts(PromptSource):
    """The prompt source `miniature-video`."""

    options: MiniatureVideoPromptsOptions

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of one split; the same options always give the same prompts."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        return prompts(split, count, self.options.seed)

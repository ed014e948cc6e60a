"""Prompts about moving shapes, split into train and held-out.

The splits share neither templates ("moving left" against "that moves left") nor contents: of the 48 combinations of
shape, color and direction a quarter is held out, each color and each direction in it three times and each shape four
times. The base model has seen every word, template and combination in its own training; held-out means: never used for
preference training.
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
    """One in four, a Latin square for each shape."""
    place = SHAPES.index(caption.shape) + COLORS.index(caption.color) + DIRECTIONS.index(caption.direction)
    return place % 4 == 0


def captions(split: Split) -> list[Caption]:
    """Every content of a split, in a fixed order: 36 to train with, 12 held out."""
    return [caption for caption in all_captions() if is_heldout(caption) == (split == "heldout")]


def prompts(split: Split, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts of a split. Each combination of content and template comes once before one comes again.

    Deterministic in its arguments; a smaller count gives the beginning of a larger one.
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
        """The prompts of one split, always the same ones for the same options."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        return prompts(split, count, self.options.seed)

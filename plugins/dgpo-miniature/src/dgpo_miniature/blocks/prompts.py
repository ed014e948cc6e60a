"""Prompts about blocks, split into train and held-out.

The splits share neither templates nor contents, except those of the task `one`, which has only four. Captions of the
same content ("red left blue" and "blue right red") are in the same split. The base model was trained on every
word, template and content; "held-out" means not used for preference training.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.types import Prompt
from dgpo_miniature.blocks.captions import (
    HELDOUT_TEMPLATES,
    TASKS,
    TRAIN_TEMPLATES,
    Caption,
    all_captions,
    matching,
    text,
)

__all__ = ["BlockPrompts", "Split", "captions", "prompts"]

Split = Literal["train", "heldout"]
HELDOUT_EVERY = {"two": 3, "count": 3, "position": 4}
"""Every n-th content of a task is held out."""


def captions(split: Split, task: str) -> list[Caption]:
    """Return the captions of a task in a split, in a fixed order; both splits contain all of `one`."""
    every = HELDOUT_EVERY.get(task)
    if every is None:
        return all_captions(task)
    contents: dict[bytes, int] = {}
    found = []
    for caption in all_captions(task):
        # A step that has no factor in common with the numbers of relations and counts spreads over both.
        place = contents.setdefault(matching(caption).tobytes(), len(contents))
        if ((place + place // every) % every == 0) == (split == "heldout"):
            found.append(caption)
    return found


def prompts(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` prompts of a split with their metadata, cycling through the tasks.

    Every combination of content and template of a task occurs once before one repeats. Deterministic: a smaller count
    returns a prefix of a larger one. Raises ValueError for an unknown split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}; the splits are 'train' and 'heldout'")
    templates = TRAIN_TEMPLATES if split == "train" else HELDOUT_TEMPLATES
    decks = {task: [(c, t) for c in captions(split, task) for t in templates] for task in TASKS}
    shuffled: dict[str, list[tuple[Caption, str]]] = {}
    found = []
    for index in range(count):
        task, turn = TASKS[index % len(TASKS)], index // len(TASKS)
        lap, place = divmod(turn, len(decks[task]))
        if place == 0:
            shuffled[task] = Random(f"blocks {split} {task} {seed} {lap}").sample(decks[task], len(decks[task]))
        caption, template = shuffled[task][place]
        found.append({"prompt": text(caption, template), **caption.metadata()})
    return found


class BlockPrompts(PromptSource):
    """The prompt source `miniature-blocks`."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of one split; the same options always give the same prompts."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        found = prompts(split, count, self.options.seed)
        return [Prompt(entry["prompt"], entry) for entry in found]

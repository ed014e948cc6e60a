"""Prompts about the world of shapes, in GenEval's format, split into train and held-out.

The splits share no text because their templates differ ("a photo of" and "a drawing of"). They also share no content,
except for `single_object`, which has only one content per class: at least a quarter of the combinations of
`two_object`, `counting`, `colors`, `position` and `color_attr` is held out, both orders of a pair of objects together.
The base model was trained on every word, template and combination; "held-out" means not used for preference training.

If a split has fewer distinct prompts than requested, its texts repeat; they never occur in the other split.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.types import Prompt
from dgpo_miniature.captions import (
    HELDOUT_TEMPLATES,
    TASKS,
    TRAIN_TEMPLATES,
    Caption,
    all_captions,
    metadata,
    text,
)
from dgpo_miniature.world import CLASSES

__all__ = ["MiniaturePrompts", "Split", "captions", "prompts"]

Split = Literal["train", "heldout"]
HELDOUT_EVERY = {"counting": 3, "colors": 4, "position": 4, "color_attr": 4}
"""Every n-th content of the same classes is held out."""


def content_key(caption: Caption) -> str:
    """Return a key of the content that ignores the order of the objects; only one split may contain a key."""
    opposite = {"right of": "left of", "below": "above"}
    objects, relation = list(caption.objects), caption.relation
    if relation in opposite:
        objects, relation = objects[::-1], opposite[relation]
    elif relation is None:
        objects.sort()
    return repr((caption.task, objects, caption.count, relation))


def heldout_keys(task: str) -> set[str]:
    """Return the held-out contents of a task, distributed evenly over classes, colors, counts and relations."""
    strata: dict[frozenset[str], dict[str, None]] = {}
    for caption in all_captions(task):
        classes = frozenset(name for name, _ in caption.objects)
        strata.setdefault(classes, {})[content_key(caption)] = None
    if task == "two_object":
        # First with last, second with third: two pairs that share no class.
        ends = ({CLASSES[0], CLASSES[-1]}, {CLASSES[1], CLASSES[2]})
        return {key for classes, keys in strata.items() if classes in ends for key in keys}
    every = HELDOUT_EVERY.get(task)
    if every is None:
        return set()
    return {
        key
        for shift, keys in enumerate(strata.values())
        for place, key in enumerate(keys)
        if (place + shift) % every == 0
    }


def captions(split: Split, task: str) -> list[Caption]:
    """Return the contents of a task in a split, in a fixed order; both splits contain all of `single_object`."""
    held = heldout_keys(task)
    return [c for c in all_captions(task) if not held or (content_key(c) in held) == (split == "heldout")]


def prompts(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` prompts of a split as GenEval metadata, cycling through the tasks.

    Every combination of content and template of a task occurs once before one repeats. Deterministic: a smaller count
    returns a prefix of a larger one. Raises ValueError for an unknown split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}; the splits are 'train' and 'heldout'")
    templates = TRAIN_TEMPLATES if split == "train" else HELDOUT_TEMPLATES
    choices = {task: [(c, t) for c in captions(split, task) for t in templates] for task in TASKS}
    out = []
    shuffled: dict[str, list[tuple[Caption, str]]] = {}
    for index in range(count):
        task, turn = TASKS[index % len(TASKS)], index // len(TASKS)
        lap, place = divmod(turn, len(choices[task]))
        if place == 0:
            deck = choices[task]
            shuffled[task] = Random(f"{split} {task} {seed} {lap}").sample(deck, len(deck))
        caption, template = shuffled[task][place]
        out.append(metadata(caption, text(caption, template)))
    return out


class MiniaturePrompts(PromptSource):
    """The prompt source `miniature`."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of one split; the same options always give the same prompts."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        return [Prompt(entry["prompt"], entry) for entry in prompts(split, count, self.options.seed)]

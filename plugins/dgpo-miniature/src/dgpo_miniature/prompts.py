"""Prompts about the world of shapes, in GenEval's format, split into train and held-out.

The splits share no text, because their templates differ ("a photo of" against "a drawing of"). They also share no
content wherever a task has enough of it: a quarter or more of the combinations of `two_object`, `counting`, `colors`,
`position` and `color_attr` is held out, both orders of a pair of objects together. `single_object` has only as many
contents as there are classes, so there the template alone differs. The base model has seen every word, template and
combination in its own training; held-out means: never used for preference training.

There are fewer distinct prompts than a split may ask for, so texts repeat within a split, never across.
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
"""One in so many contents of the same classes is held out."""


def content_key(caption: Caption) -> str:
    """What may be in one split only: the content without the order of the objects, a relation read from either side."""
    opposite = {"right of": "left of", "below": "above"}
    objects, relation = list(caption.objects), caption.relation
    if relation in opposite:
        objects, relation = objects[::-1], opposite[relation]
    elif relation is None:
        objects.sort()
    return repr((caption.task, objects, caption.count, relation))


def heldout_keys(task: str) -> set[str]:
    """Contents of a task that are held out, spread evenly over the classes, colors, numbers and relations."""
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
    """Every content of a task that belongs to a split, in a fixed order; of single_object, all in both."""
    held = heldout_keys(task)
    return [c for c in all_captions(task) if not held or (content_key(c) in held) == (split == "heldout")]


def prompts(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` prompts of a split as GenEval metadata, the tasks in turn, so that their shares are equal.

    Every combination of content and template of a task comes up once before one comes up again. Deterministic in its
    arguments; a smaller count gives the beginning of a larger one. Raises ValueError for an unknown split.
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
        """The prompts of one split, always the same ones for the same options."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        return [Prompt(entry["prompt"], entry) for entry in prompts(split, count, self.options.seed)]

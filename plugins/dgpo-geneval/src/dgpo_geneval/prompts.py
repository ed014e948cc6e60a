"""The prompt source `geneval`: generated prompts like the benchmark's, and their held-out split.

Training and held-out prompts share no *content*. The content of a prompt with two objects is its two classes, for all
tasks, in both orders and with any color or relation; otherwise it is the class, class and number, or class and color.
`heldout: split` holds out about a fifth of the contents, selected by their hashes and so always the same.
`heldout: benchmark` holds out the contents of the benchmark's prompts. (Flow-GRPO, arXiv 2505.05470, removes the same
prompts in either order of the objects, but keeps the same two objects with another relation or color, so its training
prompts are closer to the test.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import permutations
from random import Random
from typing import Any, Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval import suite
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.metadata import COLORS, RELATIONS, TASKS, Task
from dgpo_geneval.suite import COLORABLE, NUMBERS, Entry
from dgpo_geneval.wording import reworded

__all__ = ["GenEvalPrompts"]

Split = Literal["train", "heldout"]
Content = tuple[Hashable, ...]
HELDOUT_SHARE = 5
"""`heldout: split` holds out one in so many contents."""
HELDOUT_COUNT = 600

GRID: Mapping[Task, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], Callable[..., Entry]]] = {
    "single_object": ([(a,) for a in CLASSES], [()], suite.single_object),
    "two_object": (list(permutations(CLASSES, 2)), [()], suite.two_object),
    "counting": ([(a, n) for a in CLASSES for n in NUMBERS], [()], suite.counting),
    "colors": ([(a, c) for a in COLORABLE for c in COLORS], [()], suite.colors),
    "position": (list(permutations(CLASSES, 2)), [(r,) for r in RELATIONS], suite.position),
    "color_attr": (list(permutations(COLORABLE, 2)), list(permutations(COLORS, 2)), suite.color_attr),
}
"""For each task: the subjects of its prompts, their attributes, and the function that creates a prompt from both."""


def content(task: Task, about: tuple[Any, ...]) -> Content:
    """Return the content of a prompt, which belongs to one split only."""
    return ("pair", *sorted(about)) if task in ("two_object", "position", "color_attr") else (task, *about)


def content_of(entry: Entry) -> Content:
    """Return the content of a line of the benchmark."""
    clauses = entry["include"]
    match entry["tag"]:
        case "counting":
            return content("counting", (clauses[0]["class"], clauses[0]["count"]))
        case "colors":
            return content("colors", (clauses[0]["class"], clauses[0]["color"]))
        case tag:
            return content(tag, tuple(clause["class"] for clause in clauses))


@functools.cache
def split_contents() -> frozenset[Content]:
    """Return the contents that `heldout: split` holds out."""
    contents = {content(task, about) for task, (subjects, _, _) in GRID.items() for about in subjects}
    digests = {c: hashlib.sha256("/".join(map(str, c)).encode()).digest() for c in contents}
    return frozenset(c for c, digest in digests.items() if int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0)


def lap(count: int, rng: Random) -> Iterator[int]:
    """Yield the numbers below `count` in random order, by a lazy Fisher-Yates shuffle, because some tasks have half a
    million prompts."""
    moved: dict[int, int] = {}
    for place in range(count):
        other = rng.randrange(place, count)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)


def entries(task: Task, wanted: Callable[[Content], bool], key: str, *, repeat: bool) -> Iterator[Entry]:
    """Yield the prompts of a task whose content is `wanted`, each once, in an order determined by `key`; with `repeat`,
    start again in another order."""
    subjects, ways, word = GRID[task]
    subjects = [about for about in subjects if wanted(content(task, about))]
    turn = 0
    while subjects and (repeat or turn == 0):
        for place in lap(len(subjects) * len(ways), Random(f"{key} {task} {turn}")):
            subject, way = divmod(place, len(ways))
            yield word(*subjects[subject], *ways[way])
        turn += 1


def schedule(weights: Mapping[Task, float]) -> Iterator[Task]:
    """Yield tasks endlessly, in proportion to their weights, as evenly as possible in every prefix."""
    credit = dict.fromkeys(weights, 0.0)
    total = sum(weights.values())
    while True:
        for task, weight in weights.items():
            credit[task] += weight
        chosen = max(credit, key=lambda task: credit[task])
        credit[chosen] -= total
        yield chosen


class GenEvalPrompts(PromptSource):
    """Prompts in GenEval's format. Options: see `options.GenEvalPromptsOptions`."""

    def prompts(self, split: Split) -> list[Prompt]:
        """Return the prompts of one split, always the same for the same options; the splits share no content.

        A smaller count returns the first prompts of a larger one. Raises UserError if a training task is completely
        held out.
        """
        benchmark = self.options.heldout == "benchmark"
        if split == "heldout" and benchmark:
            found = list(suite.benchmark())
        else:
            held = frozenset(map(content_of, suite.benchmark())) if benchmark else split_contents()
            found = self._train(held) if split == "train" else self._heldout(held)
        return [Prompt(entry.pop("prompt"), entry) for entry in map(dict, found)]

    def reworded(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """Return other sentences about the same objects; None for a prompt without valid metadata."""
        return [reworded(prompt) for prompt in prompts]

    def _train(self, held: AbstractSet[Content]) -> list[Entry]:
        weights = {task: self.options.tasks.get(task, 0.0) for task in TASKS}
        weights = {task: weight for task, weight in weights.items() if weight > 0}
        key = f"train {self.options.seed}"
        decks = {task: entries(task, lambda one: one not in held, key, repeat=True) for task in weights}
        found: list[Entry] = []
        for task, _ in zip(schedule(weights), range(self.options.train_count), strict=False):
            entry = next(decks[task], None)
            if entry is None:
                raise UserError(
                    f"prompts geneval: no training prompts for the task {task}: all of its prompts are held out with "
                    f"`heldout: {self.options.heldout}`; set its weight in `tasks` to 0, or set `heldout: split`"
                )
            found.append(entry)
        return found

    def _heldout(self, held: AbstractSet[Content]) -> list[Entry]:
        """Take prompts from the tasks in turn. Tasks without more prompts are skipped: repeated ones would not change
        their means."""
        count = self.options.heldout_count or HELDOUT_COUNT
        key = f"heldout {self.options.seed}"
        decks = [entries(task, lambda one: one in held, key, repeat=False) for task in TASKS]
        share = -(-count // len(TASKS))
        turns = [[next(deck, None) for deck in decks] for _ in range(share)]
        return [entry for turn in turns for entry in turn if entry is not None][:count]

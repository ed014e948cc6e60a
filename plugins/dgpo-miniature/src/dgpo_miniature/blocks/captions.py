"""Captions of blocks: their texts, and the arrangements that they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations, permutations
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgpo_miniature.blocks.world import ARRANGEMENTS, COLORS

__all__ = [
    "HELDOUT_TEMPLATES", "NUMBERS", "RELATIONS", "TASKS", "TRAIN_TEMPLATES", "Caption", "all_captions", "corrupt",
    "matching", "text",
]  # fmt: skip

TASKS = ("one", "two", "count", "position")
RELATIONS = ("left", "right", "above", "below")
TRAIN_TEMPLATES = ("photo", "picture")
HELDOUT_TEMPLATES = ("drawing",)
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLACES = {
    "left": ((0, 1), (2, 3)),
    "right": ((1, 0), (3, 2)),
    "above": ((0, 2), (1, 3)),
    "below": ((2, 0), (3, 1)),
}
"""Cells of the first and the second block."""


@dataclass(frozen=True, slots=True)
class Caption:
    """Content of a caption: the blocks of an image, which shows nothing else.

    colors: one, or two of `two` and `position`; count: number of blocks of the color (1 except for `count`); relation:
    position of the first block relative to the second (`position` only).
    """

    task: str
    colors: tuple[str, ...]
    count: int = 1
    relation: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the fields for the prompt; `tag` is the task, as in GenEval."""
        found = {key: value for key, value in asdict(self).items() if key != "task"}
        return {"tag": self.task, **found, "colors": list(self.colors)}


def all_captions(task: str) -> list[Caption]:
    """Return every content of a task, in a fixed order. Raises ValueError for an unknown task."""
    match task:
        case "one":
            return [Caption(task, (color,)) for color in COLORS]
        case "two":
            return [Caption(task, pair) for pair in combinations(COLORS, 2)]
        case "count":
            return [Caption(task, (color,), count=n) for color in COLORS for n in NUMBERS]
        case "position":
            return [Caption(task, pair, relation=one) for pair in permutations(COLORS, 2) for one in RELATIONS]
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def text(caption: Caption, template: str) -> str:
    """Return the text, of few words because each costs time: "photo red left blue", "photo three red"."""
    if caption.task in ("one", "count"):
        return f"{template} {NUMBERS.get(caption.count, 'one')} {caption.colors[0]}"
    return f"{template} {caption.colors[0]} {caption.relation or 'and'} {caption.colors[1]}"


@cache
def matching(caption: Caption) -> NDArray[np.bool_]:
    """Return which arrangements [S] a caption describes: exactly its blocks, at their relative position."""
    first, last = (1 + COLORS.index(color) for color in (caption.colors[0], caption.colors[-1]))
    wanted = (first,) * caption.count if caption.task in ("one", "count") else (first, last)
    blocks = np.sort([0] * (4 - len(wanted)) + list(wanted))
    found = (np.sort(ARRANGEMENTS, axis=1) == blocks).all(axis=1)
    if caption.relation is not None:
        found &= np.any([(ARRANGEMENTS[:, a] == first) & (ARRANGEMENTS[:, b] == last)
                         for a, b in PLACES[caption.relation]], axis=0)  # fmt: skip
    return np.asarray(found)


def corrupt(caption: Caption, rng: Random) -> Caption:
    """Return the content of an image that differs from the caption in one clause: a color, the number, a missing block
    or the relation."""
    others = [color for color in COLORS if color not in caption.colors]
    place = rng.randrange(len(caption.colors))
    recolored = tuple(rng.choice(others) if i == place else color for i, color in enumerate(caption.colors))
    faults = {
        "one": ("color", "number"),
        "two": ("color", "missing"),
        "count": ("color", "number", "number"),
        "position": ("color", "missing", "relation", "relation"),
    }
    match rng.choice(faults[caption.task]):
        case "color":
            return replace(caption, colors=recolored)
        case "number":
            near = [n for n in (caption.count - 1, caption.count + 1) if 1 <= n <= 4]
            return replace(caption, task="count", count=rng.choice(near))
        case "relation":
            return replace(caption, relation=rng.choice([one for one in RELATIONS if one != caption.relation]))
        case _:
            return Caption("one", (caption.colors[1 - place],))

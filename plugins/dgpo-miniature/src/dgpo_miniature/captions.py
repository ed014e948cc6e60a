"""Captions of the world of shapes: GenEval task, objects, text, and the scenes that they describe.

A `Caption` gives prompts with metadata for the evaluator (`metadata`), scenes for training the base model
(`scene_content`), and the wrong content of faulty training captions (`corrupt`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import Any

from dgpo_miniature.world import CLASSES, COLORS, EMPTY

__all__ = [
    "HELDOUT_TEMPLATES",
    "RELATIONS",
    "TASKS",
    "TRAIN_TEMPLATES",
    "Caption",
    "all_captions",
    "corrupt",
    "metadata",
    "scene_content",
    "text",
]

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
TRAIN_TEMPLATES = ("a photo of", "a picture of", "an image of")
HELDOUT_TEMPLATES = ("a drawing of",)
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True, slots=True)
class Caption:
    """Content of a caption.

    objects: (class, color or None) in the order of the text; count: number of objects of the class (1 except for
    "counting"); relation: position of the first object relative to the second ("position" only).
    """

    task: str
    objects: tuple[tuple[str, str | None], ...]
    count: int = 1
    relation: str | None = None


def all_captions(task: str) -> list[Caption]:
    """Return every caption of a task, in a fixed order."""
    pairs = list(permutations(CLASSES, 2))
    match task:
        case "single_object":
            return [Caption(task, ((c, None),)) for c in CLASSES]
        case "two_object":
            return [Caption(task, ((a, None), (b, None))) for a, b in pairs]
        case "counting":
            return [Caption(task, ((c, None),), count=n) for c in CLASSES for n in NUMBERS]
        case "colors":
            return [Caption(task, ((c, color),)) for c in CLASSES for color in COLORS]
        case "position":
            return [Caption(task, ((a, None), (b, None)), relation=r) for a, b in pairs for r in RELATIONS]
        case "color_attr":
            hues = list(permutations(COLORS, 2))
            return [Caption(task, ((a, h), (b, k))) for a, b in pairs for h, k in hues]
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def text(caption: Caption, template: str) -> str:
    """Return the text of a caption, for example "a photo of a red circle and a blue square"."""
    if caption.task == "counting":
        name = caption.objects[0][0]
        return f"{template} {NUMBERS[caption.count]} {name}{'es' if name.endswith('s') else 's'}"
    parts = [f"a {color} {name}" if color else f"a {name}" for name, color in caption.objects]
    return f"{template} " + f" {caption.relation or 'and'} ".join(parts)


def metadata(caption: Caption, prompt: str) -> dict[str, Any]:
    """Return GenEval's metadata of a caption; as in GenEval, the reference object of a position prompt comes first.

    `exclude` limits every class, so that images with additional objects are wrong. GenEval itself limits only the class
    of counting prompts; a model trained with that learns to generate additional objects.
    """
    include: list[dict[str, Any]] = []
    order = caption.objects[::-1] if caption.relation else caption.objects
    for name, color in order:
        clause: dict[str, Any] = {"class": name, "count": caption.count}
        if color:
            clause["color"] = color
        include.append(clause)
    if caption.relation:
        include[1]["position"] = [caption.relation, 0]
    wanted = {clause["class"]: clause["count"] for clause in include}
    exclude = [{"class": name, "count": wanted.get(name, 0) + 1} for name in CLASSES]
    return {"tag": caption.task, "include": include, "exclude": exclude, "prompt": prompt}


def scene_content(caption: Caption, rng: Random) -> tuple[list[int], list[int]]:
    """Return class and color indices, [4] each, of a random scene that matches the caption.

    Cells and colors that the caption does not specify are random; counted objects share one color.
    """
    kind, color = [EMPTY] * 4, [0] * 4
    objects = list(caption.objects) * caption.count
    cells: Sequence[int]
    if caption.relation in ("left of", "above"):
        cells = rng.choice([(0, 1), (2, 3)] if caption.relation == "left of" else [(0, 2), (1, 3)])
    elif caption.relation:
        cells = rng.choice([(1, 0), (3, 2)] if caption.relation == "right of" else [(2, 0), (3, 1)])
    else:
        cells = rng.sample(range(4), len(objects))
    common = rng.randrange(len(COLORS))
    for cell, (name, hue) in zip(cells, objects, strict=True):
        free = common if caption.task == "counting" else rng.randrange(len(COLORS))
        kind[cell], color[cell] = CLASSES.index(name), COLORS.index(hue) if hue else free
    return kind, color


def other(values: Sequence[Any], taken: Sequence[Any], rng: Random) -> Any:
    """Return a random value that is not in `taken`."""
    return rng.choice([value for value in values if value not in taken])


def corrupt(caption: Caption, rng: Random) -> Caption:
    """Return the content of an image that differs from the caption in one clause.

    The fault is a wrong class, color, count or relation, exchanged colors, or a missing object.
    """
    objects = list(caption.objects)
    names = [name for name, _ in objects]
    index = rng.randrange(len(objects))
    name, color = objects[index]
    faults = {
        "single_object": ("class",),
        "two_object": ("class", "class", "dropped"),
        "counting": ("count", "count", "class"),
        "colors": ("color", "color", "class"),
        "position": ("relation", "relation", "class", "dropped"),
        "color_attr": ("color", "exchanged", "class", "dropped"),
    }
    match rng.choice(faults[caption.task]):
        case "class":
            objects[index] = (other(CLASSES, names, rng), color)
        case "color":
            objects[index] = (name, other(COLORS, [hue for _, hue in objects], rng))
        case "exchanged":
            objects = [(objects[0][0], objects[1][1]), (objects[1][0], objects[0][1])]
        case "count":
            wrong = other(range(max(1, caption.count - 1), min(4, caption.count + 1) + 1), [caption.count], rng)
            return replace(caption, count=wrong)
        case "relation":
            return replace(caption, relation=other(RELATIONS, [caption.relation], rng))
        case _:
            return Caption("colors" if color else "single_object", (objects[1 - index],))
    return replace(caption, objects=tuple(objects))

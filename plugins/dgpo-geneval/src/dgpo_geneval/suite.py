"""Templates of GenEval's prompts, and the benchmark's 553 prompts.

Templates, articles and plurals are those of `prompts/create_prompts.py` of djghosh13/geneval, including its quirks: "a
photo of two benchs", "a photo of a skis", and no prompts about colored persons.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from dgpo_core.errors import UserError
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.metadata import COLORS, RELATIONS

__all__ = ["COLORABLE", "NUMBERS", "benchmark", "color_attr", "colors", "counting", "position", "single_object"]
__all__ += ["two_object"]

Entry = dict[str, Any]
"""One line of `evaluation_metadata.jsonl`: tag, include, optionally exclude, prompt."""

NUMBERS = {2: "two", 3: "three", 4: "four"}
COLORABLE = tuple(name for name in CLASSES if name != "person")

BENCHMARK_SEED = 43
BENCHMARK_DRAWS = 100
BENCHMARK_DIGEST = "f23de0226e3f1136e39efa732c76a34ca7703686c30edd999019223c5fe9a98f"
"""SHA-256 of the lines, joined by newlines."""


def with_article(words: str) -> str:
    """Prepend a or an, depending on the first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    """Return the benchmark's plural: es after s, else s."""
    return f"{name}{'es' if name.endswith('s') else 's'}"


def _of(name: str, count: int = 1, **more: Any) -> Entry:
    return {"class": name, "count": count, **more}


def single_object(name: str) -> Entry:
    """Create a prompt about a class: "a photo of a bench"."""
    return {"tag": "single_object", "include": [_of(name)], "prompt": f"a photo of {with_article(name)}"}


def two_object(a: str, b: str) -> Entry:
    """Create a prompt about two classes: "a photo of a bench and a sports ball"."""
    words = f"a photo of {with_article(a)} and {with_article(b)}"
    return {"tag": "two_object", "include": [_of(a), _of(b)], "prompt": words}


def counting(name: str, count: int) -> Entry:
    """Create a prompt about exactly two to four objects of a class: "a photo of two clocks"."""
    return {
        "tag": "counting",
        "include": [_of(name, count)],
        "exclude": [_of(name, count + 1)],
        "prompt": f"a photo of {NUMBERS[count]} {plural(name)}",
    }


def colors(name: str, color: str) -> Entry:
    """Create a prompt about a class and its color: "a photo of a pink car"."""
    words = f"a photo of {with_article(color)} {name}"
    return {"tag": "colors", "include": [_of(name, color=color)], "prompt": words}


def position(a: str, b: str, relation: str) -> Entry:
    """Create a prompt about the relation of two classes: "a photo of a dog right of a teddy bear"."""
    return {
        "tag": "position",
        "include": [_of(b), _of(a, position=[relation, 0])],
        "prompt": f"a photo of {with_article(a)} {relation} {with_article(b)}",
    }


def color_attr(a: str, b: str, color_a: str, color_b: str) -> Entry:
    """Create a prompt about two classes with colors: "a photo of a purple wine glass and a black apple"."""
    return {
        "tag": "color_attr",
        "include": [_of(a, color=color_a), _of(b, color=color_b)],
        "prompt": f"a photo of {with_article(color_a)} {a} and {with_article(color_b)} {b}",
    }


def _draw() -> Iterator[Entry]:
    """Draw the benchmark's prompts. The order of the draws from the generator must not change."""
    rng = np.random.default_rng(BENCHMARK_SEED)
    every, colorable, hues = len(CLASSES), len(COLORABLE), len(COLORS)
    for name in rng.choice(every, size=every, replace=False):
        yield single_object(CLASSES[name])
    for _ in range(BENCHMARK_DRAWS):
        a, b = rng.choice(every, size=2, replace=False)
        yield two_object(CLASSES[a], CLASSES[b])
    for _ in range(BENCHMARK_DRAWS):
        name = rng.choice(every)
        yield counting(CLASSES[name], int(rng.integers(2, 4, endpoint=True)))
    for _ in range(BENCHMARK_DRAWS):
        name = rng.choice(colorable)
        yield colors(COLORABLE[name], COLORS[rng.choice(hues)])
    for _ in range(BENCHMARK_DRAWS):
        a, b = rng.choice(every, size=2, replace=False)
        yield position(CLASSES[a], CLASSES[b], RELATIONS[rng.choice(len(RELATIONS))])
    for _ in range(BENCHMARK_DRAWS):
        a, b = rng.choice(colorable, size=2, replace=False)
        hue_a, hue_b = rng.choice(hues, size=2, replace=False)
        yield color_attr(COLORABLE[a], COLORABLE[b], COLORS[hue_a], COLORS[hue_b])


@functools.cache
def benchmark() -> tuple[Entry, ...]:
    """Return the 553 lines of the benchmark's `evaluation_metadata.jsonl`, in order, generated as by its authors.

    Raises UserError if the installed numpy draws other numbers from the seed, so that the prompts differ.
    """
    lines = dict.fromkeys(json.dumps(entry) for entry in _draw())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if digest != BENCHMARK_DIGEST:
        raise UserError(
            f"numpy {np.__version__} does not draw the benchmark's prompts from its seed; use the file "
            "prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval instead: `heldout: {file: ...}`"
        )
    return tuple(json.loads(line) for line in lines)

"""GenEval's prompts in other words: sentences about the same objects that do not begin with "a photo of"."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval.metadata import Include, parse
from dgpo_geneval.suite import plural, with_article

__all__ = ["FRAMES", "reworded"]

FRAMES = ("This picture shows {}.", "{}, in one image", "In the picture, one can see {}.")
"""Sentences with a place for the objects."""
RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
NUMBERS = {1: "", 2: "a pair of", 3: "a group of three", 4: "a group of four"}


def reworded(prompt: Prompt) -> str | None:
    """Return a sentence about all objects of a prompt; None if its metadata is not GenEval's, or if it asks for what
    these sentences cannot say: several positions, or the absence of a class.

    The text of the prompt selects one of `FRAMES`.
    """
    try:
        metadata = parse(prompt)
    except UserError:
        return None
    clauses = metadata.include
    asked = {clause.label for clause in clauses}
    related = [i for i, clause in enumerate(clauses) if clause.position is not None]
    if len(related) > 1 or any(bound.label not in asked for bound in metadata.exclude):
        return None
    objects = dict(enumerate(map(_object, clauses)))
    first = [_pair(clauses, related[0], objects)] if related else []
    choice = hashlib.sha256(prompt.text.encode()).digest()[0] % len(FRAMES)
    return FRAMES[choice].format(" as well as ".join([*first, *objects.values()]))


def _pair(clauses: Sequence[Include], number: int, objects: dict[int, str]) -> str:
    """Take the objects of a clause with a position and of the one that it refers to, and return the words for both."""
    position = clauses[number].position
    assert position is not None
    relation, reference = position
    it = "it" if clauses[reference].count == 1 else "them"
    return f"{objects.pop(reference)} and, {RELATIONS[relation]} {it}, {objects.pop(number)}"


def _object(clause: Include) -> str:
    """Return the words of a clause: "a bench that is red", "a pair of clocks"."""
    if clause.count == 1:
        words = with_article(clause.label)
    else:
        number = NUMBERS.get(clause.count, f"a group of {clause.count}")
        words = f"{number} {plural(clause.label)}"
    be = "is" if clause.count == 1 else "are"
    return words if clause.color is None else f"{words} that {be} {clause.color}"

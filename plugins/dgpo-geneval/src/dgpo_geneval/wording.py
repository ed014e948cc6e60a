"""GenEval's prompts in other words: sentences about the same objects that do not begin with "a photo of"."""

from __future__ import annotations

import hashlib

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
    """Return a sentence about the objects of a prompt; None if its metadata is not GenEval's.

    The text of the prompt selects one of `FRAMES`.
    """
    try:
        clauses = parse(prompt).include
    except UserError:
        return None
    objects = [_object(clause) for clause in clauses]
    related = next((i for i, clause in enumerate(clauses) if clause.position is not None), None)
    if related is None:
        words = " as well as ".join(objects)
    else:
        position = clauses[related].position
        assert position is not None
        relation, reference = position
        words = f"{objects[reference]} and, {RELATIONS[relation]} it, {objects[related]}"
    choice = hashlib.sha256(prompt.text.encode()).digest()[0] % len(FRAMES)
    return FRAMES[choice].format(words)


def _object(clause: Include) -> str:
    """Return the words of a clause: "a bench that is red", "a pair of clocks"."""
    if clause.count == 1:
        words = with_article(clause.label)
    else:
        number = NUMBERS.get(clause.count, f"a group of {clause.count}")
        words = f"{number} {plural(clause.label)}"
    be = "is" if clause.count == 1 else "are"
    return words if clause.color is None else f"{words} that {be} {clause.color}"

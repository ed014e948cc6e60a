"""Clauses in words and marks on the image: what was used, what is right, what nobody asked for."""

from __future__ import annotations

from typing import Any

import pytest

from dgpo_core.types import Prompt
from dgpo_geneval.detector import Box, Detection, Thresholds
from dgpo_geneval.diagnosis import diagnose
from dgpo_geneval.evaluator import evaluate
from dgpo_geneval.metadata import parse
from dgpo_geneval.variants import VariantName
from dgpo_schemas.diagnostics import Diagnostics

LEFT: Box = (0, 40, 20, 60)
MIDDLE: Box = (100, 40, 120, 60)
RIGHT: Box = (200, 40, 220, 60)


def dog(color: str | None = None, box: Box = MIDDLE, score: float = 0.95) -> Detection:
    return Detection("dog", score, box, color)


def say(
    tag: str, include: list[dict[str, Any]], scene: list[Detection], variant: VariantName = "geneval", **kw: Any
) -> Any:
    prompt = Prompt("p", {"tag": tag, "include": include, **kw})
    verdict = evaluate(parse(prompt), scene, variant=variant, thresholds=Thresholds())
    said = diagnose(prompt, variant, verdict, None)
    Diagnostics.model_validate(said)
    return said


def of(label: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": label, "count": count, **more}


def lines(said: Any) -> list[tuple[str, bool]]:
    return [(clause["text"], clause["ok"]) for clause in said["clauses"]]


def marks(said: Any) -> list[tuple[str, bool | None]]:
    return [(mark["text"], mark["ok"]) for mark in said["marks"]]


BENCH = Detection("bench", 0.8, MIDDLE)
BESIDE = [of("bench"), of("dog", position=["left of", 0])]


@pytest.mark.parametrize(
    ("include", "scene", "said", "marked"),
    [
        ([of("dog")], [dog()], [("dog, at least 1: found 1", True)], [("dog 0.95", True)]),
        ([of("dog")], [], [("dog, at least 1: found 0", False)], []),
        # One of two is there: right as far as it goes.
        ([of("dog", 2)], [dog()], [("dog, at least 2: found 1", False)], [("dog 0.95", True)]),
        # A surplus dog and a bench: nobody asked.
        (
            [of("dog")],
            [dog(), dog(score=0.5), BENCH],
            [("dog, at least 1: found 2", True)],
            [("dog 0.95", True), ("dog 0.50", None), ("bench 0.80", None)],
        ),
        # Below the threshold: not seen.
        ([of("dog")], [dog(score=0.2)], [("dog, at least 1: found 0", False)], []),
        (
            [of("dog", 2, color="red")],
            [dog("red"), dog("blue", score=0.5)],
            [("red dog, at least 2: found 2, red, blue", False)],
            [("red dog 0.95", True), ("blue dog 0.50", False)],
        ),
        (
            BESIDE,
            [BENCH, dog(box=LEFT)],
            [("bench, at least 1: found 1", True), ("dog left of the bench, at least 1: found 1, left of", True)],
            [("dog 0.95", True), ("bench 0.80", True)],
        ),
        (
            BESIDE,
            [BENCH, dog(box=RIGHT)],
            [("bench, at least 1: found 1", True), ("dog left of the bench, at least 1: found 1, right of", False)],
            [("dog 0.95", False), ("bench 0.80", True)],
        ),
        (
            BESIDE,
            [dog(box=LEFT)],
            [
                ("bench, at least 1: found 0", False),
                ("dog left of the bench, at least 1: found 1, but the bench does not match", False),
            ],
            [("dog 0.95", True)],
        ),
        # Two clauses of one class: each box belongs to one of them.
        (
            [of("dog", color="red"), of("dog", color="blue")],
            [dog("blue"), dog("red", score=0.9), dog("green", score=0.5)],
            [("red dog, at least 1: found 1 of 3, red", True), ("blue dog, at least 1: found 1 of 3, blue", True)],
            [("blue dog 0.95", True), ("red dog 0.90", True), ("green dog 0.50", None)],
        ),
        (
            [of("dog", color="red"), of("dog", 2, color="blue")],
            [dog("blue"), dog("blue", score=0.9), dog("green", score=0.5)],
            [
                ("red dog, at least 1: found 1 of 3, green", False),
                ("blue dog, at least 2: found 2 of 3, blue, blue", True),
            ],
            [("blue dog 0.95", True), ("blue dog 0.90", True), ("green dog 0.50", False)],
        ),
        # Two dogs to be left of the bench, one is.
        (
            [of("bench"), of("dog", 2, position=["left of", 0])],
            [BENCH, dog(box=LEFT), dog(box=RIGHT, score=0.5)],
            [
                ("bench, at least 1: found 1", True),
                ("dog left of the bench, at least 2: found 2, left of, right of", False),
            ],
            [("dog 0.95", True), ("bench 0.80", True), ("dog 0.50", False)],
        ),
    ],
)
def test_include(include: Any, scene: list[Detection], said: Any, marked: Any) -> None:
    found = say("two_object", include, scene)
    assert lines(found) == said
    assert sorted(marks(found), key=str) == sorted(marked, key=str)


def test_exclude() -> None:
    scene = [dog(score=s) for s in (0.95, 0.94, 0.93)]
    found = say("counting", [of("dog", 2)], scene, exclude=[of("dog", 3), of("cat", 1)])
    assert lines(found)[1:] == [("at most 2 dog: found 3", False), ("no cat: found 0", True)]
    assert marks(found) == [("dog 0.95", True), ("dog 0.94", True), ("dog 0.93", False)]
    assert found["wrong"] == "expected fewer than 3 dog, found 3"
    assert found["reason"] is None
    assert [clause["kind"] for clause in found["details"]] == ["include", "exclude", "exclude"]


def test_exact_counts() -> None:
    found = say("two_object", [of("dog")], [dog(), dog(score=0.5)], "geneval-flowgrpo")
    assert lines(found) == [("dog, exactly 1: found 2", False)]
    assert marks(found) == [("dog 0.95", True), ("dog 0.50", False)]


def test_boxes_are_lists_in_pixels() -> None:
    (mark,) = say("single_object", [of("dog")], [dog()])["marks"]
    assert mark["box"] == list(MIDDLE)


def test_a_missing_sample() -> None:
    said = diagnose(Prompt("p", {"tag": "counting"}), "geneval", None, "OSError: no weights")
    Diagnostics.model_validate(said)
    assert (said["reason"], said["correct"], said["value"], said["tag"]) == (
        "OSError: no weights",
        None,
        None,
        "counting",
    )
    assert said["clauses"] == said["marks"] == said["details"] == []

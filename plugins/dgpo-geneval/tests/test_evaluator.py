"""Golden values of every task in every variant, worked out by hand from the definitions.

Longer than other files of tests: most of it is one table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dgpo_core.types import Prompt
from dgpo_geneval.detector import Box, Detection, Thresholds
from dgpo_geneval.evaluator import ColorUnknown, Verdict, colorless, evaluate, keep
from dgpo_geneval.metadata import parse
from dgpo_geneval.variants import VARIANTS, VariantName

LEFT: Box = (0, 40, 20, 60)
MIDDLE: Box = (100, 40, 120, 60)
RIGHT: Box = (200, 40, 220, 60)


def see(
    label: str, box: Box = MIDDLE, color: str | None = None, score: float = 0.95, times: int = 1
) -> list[Detection]:
    return [Detection(label, score, box, color)] * times


def judge(
    metadata: dict[str, Any],
    scene: list[Detection],
    variant: VariantName,
    thresholds: Thresholds | None = None,
    **kw: Any,
) -> Verdict:
    return evaluate(parse(Prompt("p", metadata)), scene, variant=variant, thresholds=thresholds or Thresholds(), **kw)


def wants(tag: str, *include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), **({"exclude": list(exclude)} if exclude else {})}


def of(label: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": label, "count": count, **more}


DOG = wants("single_object", of("dog"))
DOG_AND_BENCH = wants("two_object", of("dog"), of("bench"))
FOUR_CLOCKS = wants("counting", of("clock", 4), exclude=(of("clock", 5),))
RED_CAR = wants("colors", of("car", color="red"))
TWO_RED_CARS = wants("colors", of("car", 2, color="red"))
DOG_LEFT_OF_BENCH = wants("position", of("bench"), of("dog", position=["left of", 0]))
RED_DOG_LEFT_OF_BENCH = wants("position", of("bench"), of("dog", color="red", position=["left of", 0]))
RED_BENCH_AND_DOG_LEFT = wants("position", of("bench", color="red"), of("dog", position=["left of", 0]))
TWO_DOGS_LEFT_OF_BENCH = wants("position", of("bench"), of("dog", 2, position=["left of", 0]))
APPLE_AND_CUP = wants("color_attr", of("apple", color="red"), of("cup", color="green"))
DOG_NO_CAT = wants("single_object", of("dog"), exclude=(of("cat"),))
RED_AND_BLUE = wants("color_attr", of("circle", color="red"), of("circle", color="blue"))
TWO_RED_AND_BLUE = wants("color_attr", of("circle", 2, color="red"), of("circle", color="blue"))
BLUE_RIGHT_OF_RED = wants("position", of("circle", color="red"), of("circle", color="blue", position=["right of", 0]))
LEFT_AND_RIGHT = wants("position", of("bench"), of("dog", position=["left of", 0]), of("dog", position=["right of", 0]))
TWO_CIRCLES_NO_MORE = wants(
    "color_attr", of("circle", color="red"), of("circle", color="blue"), exclude=(of("circle", 3),)
)
DOG_FEW_CATS = wants("single_object", of("dog"), exclude=(of("cat", 3),))

Scene = list[Detection]
GOLDEN: list[tuple[str, dict[str, Any], Scene, tuple[float, bool], bool, tuple[float, bool]]] = [
    # name, metadata, scene, geneval (value, correct), official, flowgrpo (value, strict)
    ("nothing", DOG, [], (0, False), False, (0, False)),
    ("another class", DOG, see("cat"), (0, False), False, (0, False)),
    ("one", DOG, see("dog"), (1, True), True, (1, True)),
    ("three", DOG, see("dog", times=3), (1, True), True, (-1, False)),  # 1 - 2/1
    ("sixteen", DOG, see("dog", times=16), (1, True), True, (-14, False)),  # 1 - 15/1
    ("two: none", DOG_AND_BENCH, [], (0, False), False, (0, False)),
    ("two: one missing", DOG_AND_BENCH, see("dog"), (1 / 2, False), False, (1 / 2, False)),
    ("two: both", DOG_AND_BENCH, see("dog") + see("bench"), (1, True), True, (1, True)),
    ("two: a dog too many", DOG_AND_BENCH, see("dog", times=2) + see("bench"), (1, True), True, (1 / 2, False)),
    ("count 0 of 4", FOUR_CLOCKS, [], (0, False), False, (0, False)),
    ("count 3 of 4", FOUR_CLOCKS, see("clock", times=3), (3 / 4, False), False, (3 / 4, False)),
    ("count 4 of 4", FOUR_CLOCKS, see("clock", times=4), (1, True), True, (1, True)),
    ("count 5 of 4", FOUR_CLOCKS, see("clock", times=5), (3 / 4, False), False, (3 / 4, False)),
    ("count 6 of 4", FOUR_CLOCKS, see("clock", times=6), (1 / 2, False), False, (1 / 2, False)),
    ("count 8 of 4", FOUR_CLOCKS, see("clock", times=8), (0, False), False, (0, False)),
    ("count 12 of 4", FOUR_CLOCKS, see("clock", times=12), (0, False), False, (-1, False)),  # 1 - 8/4
    ("color right", RED_CAR, see("car", color="red"), (1, True), True, (1, True)),
    ("color wrong", RED_CAR, see("car", color="blue"), (1 / 2, False), False, (1 / 2, False)),
    ("color, no car", RED_CAR, [], (0, False), False, (0, False)),
    (
        "color: the best car is blue",
        RED_CAR,
        see("car", color="red", score=0.5) + see("car", color="blue"),
        (1 / 2, False),
        False,
        (0, False),  # count 1 - 1/1 = 0, and one 0 more for the color
    ),
    (
        "color: the best car is red",
        RED_CAR,
        see("car", color="blue", score=0.5) + see("car", color="red"),
        (1, True),
        True,
        (0, False),
    ),
    (
        "color: one of two",
        TWO_RED_CARS,
        see("car", color="red") + see("car", color="blue"),
        (3 / 4, False),
        False,
        (3 / 4, False),
    ),
    ("color: two asked, one there", TWO_RED_CARS, see("car", color="red"), (1 / 4, False), False, (1 / 4, False)),
    ("position right", DOG_LEFT_OF_BENCH, see("bench") + see("dog", LEFT), (1, True), True, (1, True)),
    (
        "position wrong: 0 and then 1 again",
        DOG_LEFT_OF_BENCH,
        see("bench") + see("dog", RIGHT),
        (2 / 3, False),
        False,
        (3 / 4, False),  # (1 + 1 + 0 + 1) / 4
    ),
    ("position: no dog", DOG_LEFT_OF_BENCH, see("bench"), (1 / 3, False), False, (1 / 3, False)),
    ("position: no bench", DOG_LEFT_OF_BENCH, see("dog", LEFT), (1 / 3, False), False, (1 / 3, False)),
    ("position: nothing", DOG_LEFT_OF_BENCH, [], (0, False), False, (0, False)),
    (
        "position: two benches",
        DOG_LEFT_OF_BENCH,
        see("bench", times=2) + see("dog", LEFT),
        (1, True),
        True,
        (1 / 3, False),  # bench 1 - 1/1 = 0; dog 1; its target is not exact: 0
    ),
    (
        "position: only the best bench is the target",
        DOG_LEFT_OF_BENCH,
        see("bench", (-200, 40, -180, 60), score=0.5) + see("bench") + see("dog", LEFT),
        (1, True),
        True,
        (1 / 3, False),
    ),
    (
        "position: two dogs, the best one right",
        DOG_LEFT_OF_BENCH,
        see("bench") + see("dog", RIGHT, score=0.5) + see("dog", LEFT),
        (1, True),
        True,
        (1 / 3, False),  # bench 1; dog 1 - 1/1 = 0; 0
    ),
    (
        "position: one of two pairs",
        TWO_DOGS_LEFT_OF_BENCH,
        see("bench") + see("dog", LEFT) + see("dog", RIGHT),
        (5 / 6, False),  # (1 + 1 + 1/2) / 3
        False,
        (3 / 4, False),
    ),
    (
        "position: both pairs wrong is one 0",
        TWO_DOGS_LEFT_OF_BENCH,
        see("bench") + see("dog", RIGHT, times=2),
        (2 / 3, False),
        False,
        (3 / 4, False),
    ),
    (
        "position is not reached with a wrong color",
        RED_DOG_LEFT_OF_BENCH,
        see("bench") + see("dog", RIGHT, "blue"),
        (1 / 2, False),  # (1 + 1 + 0 + 0) / 4
        False,
        (2 / 3, False),  # (1 + 1 + 0) / 3: the position leaves no component at all
    ),
    (
        "position against a target of the wrong color",
        RED_BENCH_AND_DOG_LEFT,
        see("bench", color="blue") + see("dog", LEFT),
        (1 / 2, False),  # (1 + 0 + 1 + 0) / 4
        False,
        (1 / 2, False),
    ),
    (
        "attributes right",
        APPLE_AND_CUP,
        see("apple", color="red") + see("cup", color="green"),
        (1, True),
        True,
        (1, True),
    ),
    (
        "attributes swapped",
        APPLE_AND_CUP,
        see("apple", color="green") + see("cup", color="red"),
        (1 / 2, False),
        False,
        (1 / 2, False),
    ),
    (
        "attributes: one wrong",
        APPLE_AND_CUP,
        see("apple", color="red") + see("cup", color="red"),
        (3 / 4, False),
        False,
        (3 / 4, False),
    ),
    ("attributes: no cup", APPLE_AND_CUP, see("apple", color="red"), (1 / 2, False), False, (1 / 2, False)),
    (
        "attributes: two red apples",
        APPLE_AND_CUP,
        see("apple", color="red", times=2) + see("cup", color="green"),
        (1, True),
        True,
        (1 / 2, False),  # (0 + 0 + 1 + 1) / 4
    ),
    # Two clauses of one class: different objects for `geneval`, the same ones for the others.
    (
        "both circles",
        RED_AND_BLUE,
        see("circle", color="red") + see("circle", color="blue"),
        (1, True),
        False,
        (0, False),
    ),
    (
        "and the blue one first",
        RED_AND_BLUE,
        see("circle", color="blue") + see("circle", color="red"),
        (1, True),
        False,
        (0, False),
    ),
    ("one circle", RED_AND_BLUE, see("circle", color="red"), (1 / 2, False), False, (3 / 4, False)),
    (
        "one circle, the other clause's",
        RED_AND_BLUE,
        see("circle", color="blue"),
        (1 / 2, False),
        False,
        (3 / 4, False),
    ),
    ("one circle, nobody's", RED_AND_BLUE, see("circle", color="green"), (1 / 4, False), False, (1 / 2, False)),
    ("two red circles", RED_AND_BLUE, see("circle", color="red", times=2), (3 / 4, False), False, (0, False)),
    (
        "a surer circle of another color",
        RED_AND_BLUE,
        see("circle", color="green", score=0.99) + see("circle", color="red") + see("circle", color="blue"),
        (3 / 4, False),
        False,
        (-1 / 2, False),
    ),
    (
        "a less sure one",
        RED_AND_BLUE,
        see("circle", color="green", score=0.5) + see("circle", color="red") + see("circle", color="blue"),
        (1, True),
        False,
        (-1 / 2, False),
    ),
    (
        "two red circles and a blue one",
        TWO_RED_AND_BLUE,
        see("circle", color="red") + see("circle", color="blue") + see("circle", color="red"),
        (1, True),
        False,
        (-1 / 8, False),
    ),  # (1 - 1/2 + 0 + 1 - 2/1 + 0) / 4
    (
        "one of each",
        TWO_RED_AND_BLUE,
        see("circle", color="red") + see("circle", color="blue"),
        (5 / 8, False),  # (1/2 + 0 + 1 + 1) / 4; with both given to the red clause (1 + 1/2 + 0 + 0) / 4
        False,
        (3 / 8, False),  # (1 + 1/2 + 0 + 0) / 4
    ),
    (
        "one of the class beside the other",
        BLUE_RIGHT_OF_RED,
        see("circle", RIGHT, "blue") + see("circle", LEFT, "red"),
        (1, True),
        False,
        (0, False),
    ),
    (
        "on the wrong side",
        BLUE_RIGHT_OF_RED,
        see("circle", LEFT, "blue") + see("circle", RIGHT, "red"),
        (4 / 5, False),
        False,
        (0, False),
    ),
    (
        "the place says which is which",
        LEFT_AND_RIGHT,
        see("dog", RIGHT) + see("bench") + see("dog", LEFT),
        (1, True),
        False,
        (1 / 5, False),
    ),  # (1 + 0 + 0 + 0 + 0) / 5
    (
        "both on one side",
        LEFT_AND_RIGHT,
        see("dog", RIGHT, times=2) + see("bench"),
        (4 / 5, False),
        False,
        (1 / 5, False),
    ),
    (
        "a third circle",
        TWO_CIRCLES_NO_MORE,
        see("circle", color="red") + see("circle", color="blue") + see("circle", color="blue", score=0.5),
        (1 / 2, False),
        False,
        (-1 / 2, False),
    ),
    ("excluded", DOG_NO_CAT, see("dog") + see("cat"), (0, False), False, (1, True)),
    ("not excluded", DOG_NO_CAT, see("dog"), (1, True), True, (1, True)),
    ("excluded: as many as allowed", DOG_FEW_CATS, see("dog") + see("cat", times=2), (1, True), True, (1, True)),
    ("excluded: one more", DOG_FEW_CATS, see("dog") + see("cat", times=3), (1 / 2, False), False, (1, True)),
    ("excluded: twice as many", DOG_FEW_CATS, see("dog") + see("cat", times=4), (0, False), False, (1, True)),
]


@pytest.mark.parametrize(
    ("metadata", "scene", "bounded", "official", "flowgrpo"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN]
)
def test_golden(
    metadata: dict[str, Any],
    scene: Scene,
    bounded: tuple[float, bool],
    official: bool,
    flowgrpo: tuple[float, bool],
) -> None:
    expected: dict[VariantName, tuple[float, bool]] = {
        "geneval": bounded,
        "geneval-official": (float(official), official),
        "geneval-flowgrpo": flowgrpo,
    }
    for variant, (value, correct) in expected.items():
        verdict = judge(metadata, scene, variant)
        assert verdict.value == pytest.approx(value, abs=1e-12), variant
        assert verdict.correct is correct, variant
        assert (verdict.reason == "") is correct
        json.dumps(verdict.clauses())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_counting_has_a_threshold_of_its_own(variant: VariantName) -> None:
    sure, unsure = see("clock", score=0.91, times=4), see("clock", score=0.9, times=2)
    assert judge(FOUR_CLOCKS, sure + unsure, variant).correct  # 0.9 is not above 0.9
    assert judge(FOUR_CLOCKS, see("clock", score=0.9, times=4), variant).value == 0
    assert judge(DOG, see("dog", score=0.31), variant).value == 1
    assert judge(DOG, see("dog", score=0.3), variant).value == 0


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_thresholds_are_the_detectors(variant: VariantName) -> None:
    own = Thresholds(score=0.96, counting=0.1, per_class=4)
    assert judge(DOG, see("dog"), variant, own).value == 0
    assert judge(FOUR_CLOCKS, see("clock", score=0.2, times=9), variant, own).correct  # only four are kept


def test_keep_takes_the_best_sixteen_of_each_class() -> None:
    scores = [0.31 + 0.01 * i for i in range(20)]
    mixed = [d for s in scores for d in see("dog", score=s) + see("cat", score=1 - s)]
    kept = keep(mixed, 0.3, 16)
    assert [d.score for d in kept["dog"]] == sorted(scores, reverse=True)[:16]
    assert [d.score for d in kept["cat"]] == [1 - s for s in scores][:16]
    assert keep(mixed, 0.99, 16) == {}


def test_keep_orders_scores_that_differ_by_a_bit() -> None:
    rng = np.random.default_rng(0)
    for start in rng.uniform(0.31, 0.99, size=200).astype(np.float32):
        pair = [float(start), float(np.nextafter(start, np.float32(1)))]
        kept = keep([Detection("dog", score, MIDDLE) for score in pair], 0.3, 1)
        assert [d.score for d in kept["dog"]] == pair[1:]


def test_keep_leaves_equal_scores_in_order_and_overlaps_in_place() -> None:
    same = [Detection("dog", 0.5, MIDDLE, color) for color in ("red", "blue", "green")]
    assert keep(same, 0.3, 16)["dog"] == same


@pytest.mark.parametrize(
    "bad", [Detection("dog", float("nan"), MIDDLE), Detection("dog", 0.9, (0, 0, 1, float("inf")))]
)
def test_what_is_not_finite_is_refused(bad: Detection) -> None:
    with pytest.raises(ValueError, match="'dog' has score"):
        keep([bad], 0.3, 16)


def test_thresholds_must_keep_something() -> None:
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        Thresholds(per_class=0)


def test_the_classifier_is_asked_only_for_colors_that_matter() -> None:
    asked: list[list[Detection]] = []

    def classify(objects: list[Detection]) -> list[str]:
        asked.append(list(objects))
        return ["red"] * len(objects)

    unknown, known = see("car", LEFT), see("car", RIGHT, "red")
    spare = see("car", MIDDLE, score=0.4)
    verdict = judge(TWO_RED_CARS, unknown + known + spare, "geneval", classify_color=classify)
    assert verdict.correct
    assert asked == [unknown]  # not the one that knows its color, not the one beyond the best two
    assert verdict.include[0].colors == ("red", "red")
    judge(TWO_RED_CARS, unknown, "geneval", classify_color=classify)  # too few: the color cannot matter
    judge(DOG, see("dog"), "geneval", classify_color=classify)
    assert len(asked) == 1


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("metadata", "scene"), [g[1:3] for g in GOLDEN], ids=[g[0] for g in GOLDEN])
def test_colors_are_asked_for_in_the_order_that_was_reported(
    metadata: dict[str, Any], scene: Scene, variant: VariantName
) -> None:
    """`colorless` foretells, object by object, what `evaluate` asks the classifier; and nothing changes with it."""
    asked: list[Detection] = []
    blank = [dataclasses.replace(d, color=None if i % 2 else d.color) for i, d in enumerate(scene)]
    reported = {id(b): d.color for b, d in zip(blank, scene, strict=True)}

    def classify(objects: Sequence[Detection]) -> list[str]:
        asked.extend(objects)
        return [reported[id(d)] or "black" for d in objects]

    verdict = judge(metadata, blank, variant, classify_color=classify)
    expected = colorless(parse(Prompt("p", metadata)), blank, variant=variant, thresholds=Thresholds())
    assert list(map(id, asked)) == list(map(id, expected))
    assert verdict == judge(metadata, scene, variant, classify_color=lambda objects: ["black"] * len(objects))


def test_classified_colors_find_their_objects() -> None:
    scene = see("car", LEFT, score=0.9) + see("car", MIDDLE, "blue", score=0.8) + see("car", RIGHT, score=0.7)
    verdict = judge(
        wants("colors", of("car", 3, color="red")), scene, "geneval", classify_color=lambda objects: ["red", "green"]
    )
    assert verdict.include[0].colors == ("red", "blue", "green")
    assert verdict.reason == "expected 3 red car, found red, blue, green"


def test_clauses_say_which_objects_are_left_to_them() -> None:
    one, two = judge(RED_AND_BLUE, see("circle", color="red"), "geneval").clauses()
    assert (one["found"], one["used"], one["satisfied"], one["colors"]) == (1, 1, True, ["red"])
    assert (two["found"], two["used"], two["satisfied"], two["colors"]) == (1, 0, False, None)
    assert two["reason"] == "expected 1 or more circle, found 0 of 1 free"
    assert "used" not in judge(RED_AND_BLUE, see("circle", color="red"), "geneval-official").clauses()[0]
    assert [clause.objects for clause in judge(BLUE_RIGHT_OF_RED, [
        *see("circle", RIGHT, "blue"), *see("circle", LEFT, "red")], "geneval").include] == [(1,), (0,)]  # fmt: skip


def test_every_color_of_a_class_is_asked_for_once() -> None:
    asked: list[int] = []

    def classify(objects: Sequence[Detection]) -> list[str]:
        asked.append(len(objects))
        return ["blue", "red"][: len(objects)]

    assert judge(RED_AND_BLUE, see("circle", times=5), "geneval", classify_color=classify).value == 1
    assert asked == [2]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_color_nobody_knows_is_not_a_zero(variant: VariantName) -> None:
    with pytest.raises(ColorUnknown, match="color of 'car' is required"):
        judge(RED_CAR, see("car"), variant)
    assert judge(RED_CAR, [], variant).value == 0  # no car: no color is needed to say so


def test_a_classifier_must_answer_for_every_object() -> None:
    with pytest.raises(ValueError, match="returned 2 colors for 1 objects"):
        judge(RED_CAR, see("car"), "geneval", classify_color=lambda objects: ["red", "red"])


def test_clauses_say_what_was_seen() -> None:
    verdict = judge(DOG_LEFT_OF_BENCH, see("bench") + see("dog", (180, 140, 200, 160)), "geneval-official")
    assert verdict.clauses() == [
        {"kind": "include", "class": "bench", "required": 1, "found": 1, "satisfied": True, "reason": ""},
        {
            "kind": "include",
            "class": "dog",
            "required": 1,
            "found": 1,
            "satisfied": False,
            "reason": "expected dog left of clause 0, found below and right of",
            "position": ["left of", 0],
            "relations": ["below and right of"],
            "relation_holds": False,
        },
    ]
    nowhere = judge(DOG_LEFT_OF_BENCH, see("dog", LEFT), "geneval")
    assert nowhere.reason == (
        "expected 1 or more bench, found 0; expected dog left of clause 0, but clause 0 is not satisfied"
    )
    close = judge(DOG_LEFT_OF_BENCH, see("bench") + see("dog"), "geneval")
    assert close.reason == "expected dog left of clause 0, found none"
    many = judge(FOUR_CLOCKS, see("clock", times=5), "geneval")
    assert many.clauses()[1] == {
        "kind": "exclude",
        "class": "clock",
        "required": 4,
        "found": 5,
        "satisfied": False,
        "reason": "expected fewer than 5 clock, found 5",
    }
    red = judge(RED_CAR, see("car", color="blue"), "geneval").clauses()[0]
    assert (red["color"], red["colors"]) == ("red", ["blue"])
    assert judge(RED_CAR, [], "geneval").clauses()[0]["colors"] is None
    assert judge(DOG, see("dog", times=2), "geneval-flowgrpo").reason == "expected 1 dog, found 2"


def test_equal_detections_compare_without_their_masks() -> None:
    one, two = (Detection("dog", 0.5, MIDDLE, mask=np.full((4, 4), fill)) for fill in (True, False))
    assert one == two
    assert "mask" not in repr(one)

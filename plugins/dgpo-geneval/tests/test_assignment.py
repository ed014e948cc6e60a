"""Objects dealt out to clauses of one class, against every assignment there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from dgpo_core.types import Prompt
from dgpo_geneval.assignment import MOST_WAYS, assign, check_apart
from dgpo_geneval.clauses import Scene
from dgpo_geneval.detector import Box, Detection, Thresholds
from dgpo_geneval.evaluator import Verdict, evaluate
from dgpo_geneval.metadata import COLORS, RELATIONS, Metadata, parse

PAINT = ("red", "blue", "green")
Choice = list[list[Detection]]


def metadata(include: Sequence[dict[str, Any]], exclude: Sequence[dict[str, Any]] = ()) -> Metadata:
    return parse(Prompt("p", {"tag": "color_attr", "include": list(include), "exclude": list(exclude)}))


def of(label: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": label, "count": count, **more}


def judge(asked: Metadata, scene: Sequence[Detection]) -> Verdict:
    return evaluate(asked, scene, variant="geneval", thresholds=Thresholds())


def stands(a: Box, b: Box, relation: str) -> bool:
    """The relation rule as one vector along the relation's axis."""
    axis = np.array({"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation])
    corners_a, corners_b = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))
    offset = corners_a.mean(0) - corners_b.mean(0)
    margin = 0.1 * abs(axis) @ (np.ptp(corners_a, axis=0) + np.ptp(corners_b, axis=0))
    along = offset @ axis
    return bool(along > margin and along - margin > 0.5 * np.linalg.norm(offset))


def worth(asked: Metadata, choice: Choice) -> float:
    """The mean of the components, written anew from their definition."""
    parts: list[float] = []
    met: list[bool] = []
    for clause, objects in zip(asked.include, choice, strict=True):
        ok = len(objects) == clause.count
        parts.append(len(objects) / clause.count)
        if clause.color is not None:
            right = sum(d.color == clause.color for d in objects) if ok else 0
            parts.append(right / clause.count)
            ok = right == clause.count
        if clause.position is not None:
            relation, target = clause.position
            pairs = [stands(a.box, b.box, relation) for a in objects for b in choice[target]]
            reached = ok and met[target]
            parts.append(sum(pairs) / len(pairs) if reached else 0.0)
            ok = reached and all(pairs)
        met.append(ok)
    return sum(parts) / len(parts)


def assignments(asked: Metadata, scene: Sequence[Detection]) -> Iterator[Choice]:
    """Every object of a class, of its best as many as are asked for in all, to any of its clauses or to none."""
    options: list[list[tuple[Detection, int | None]]] = []
    for label in {clause.label for clause in asked.include}:
        mine = [i for i, clause in enumerate(asked.include) if clause.label == label]
        best = sorted((d for d in scene if d.label == label and d.score > 0.3), key=lambda d: -d.score)
        for detection in best[: sum(asked.include[i].count for i in mine)]:
            options.append([(detection, i) for i in (*mine, None)])
    for picked in product(*options):
        choice: Choice = [[d for d, i in picked if i == index] for index in range(len(asked.include))]
        if all(len(objects) <= clause.count for objects, clause in zip(choice, asked.include, strict=True)):
            yield choice


def scene_of(rng: np.random.Generator, counts: dict[str, int], hues: Sequence[str]) -> list[Detection]:
    scene = []
    for label, count in counts.items():
        for _ in range(count):
            x, y = (int(v) for v in rng.integers(0, 4, size=2) * 40)
            score = float(rng.uniform(0.25, 1))
            scene.append(Detection(label, score, (x, y, x + 20, y + 20), str(rng.choice(hues))))
    return scene


def check(asked: Metadata, scene: Sequence[Detection]) -> Verdict:
    verdict = judge(asked, scene)
    best = max(worth(asked, choice) for choice in assignments(asked, scene))
    assert verdict.value == pytest.approx(best, abs=1e-12), (asked, scene)
    assert verdict.correct is (verdict.value == 1)
    places = [(clause.label, place) for clause in verdict.include for place in clause.objects]
    assert len(set(places)) == len(places)
    chosen = [[verdict.kept[clause.label][place] for place in clause.objects] for clause in verdict.include]
    assert verdict.value == pytest.approx(worth(asked, chosen), abs=1e-12)
    return verdict


def test_colors_and_counts_against_every_assignment() -> None:
    """One class, up to four clauses of up to four objects."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(120):
        sizes = [[1, 1], [2, 1], [1, 3], [1, 1, 1], [2, 1, 1], [4, 1], [4, 1, 3], [2, 2], [1, 1, 2, 1]]
        counts = sizes[rng.integers(len(sizes))]
        hues = [str(h) for h in rng.choice([*PAINT, ""], size=len(counts), p=[0.4, 0.2, 0.1, 0.3])]
        asked = metadata(
            [of("circle", n, **({"color": hue} if hue else {})) for n, hue in zip(counts, hues, strict=True)]
        )
        number = int(rng.integers(0, min(sum(counts) + 2, 7 if len(counts) < 4 else 5)))
        seen.add(check(asked, scene_of(rng, {"circle": number}, PAINT)).value)
    assert len(seen) > 25


def test_positions_against_every_assignment() -> None:
    """Two classes, tied by positions within and between them."""
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(120):
        include: list[dict[str, Any]] = []
        for index in range(rng.integers(2, 5)):
            clause = of(str(rng.choice(["circle", "circle", "square"])), int(rng.choice([1, 1, 1, 2])))
            if rng.random() < 0.3:
                clause["color"] = str(rng.choice(PAINT[:2]))
            if index and rng.random() < 0.7:
                clause["position"] = [str(rng.choice(RELATIONS)), int(rng.integers(index))]
            include.append(clause)
        scene = scene_of(rng, {"circle": int(rng.integers(1, 5)), "square": int(rng.integers(0, 3))}, PAINT[:2])
        seen.add(check(metadata(include), scene).value)
    assert len(seen) > 25


def test_a_knapsack() -> None:
    """Four red objects: filling the clause of four is worth 2, those of one and three together as much, and both with
    the reds of neither less than one of two reds beside them."""
    four, one, three = of("circle", 4, color="red"), of("circle"), of("circle", 3)
    reds = scene_of(np.random.default_rng(2), {"circle": 20}, ["red"])
    reds = [d for d in reds if d.score > 0.3][:4]
    assert judge(metadata([four, one, three]), reds).value == pytest.approx(2 / 4)
    assert judge(metadata([four, one, of("circle", 3, color="red")]), reds).value == pytest.approx(3 / 5)


def test_earlier_clauses_get_the_better_objects() -> None:
    asked = metadata([of("circle"), of("circle", 2)])
    scene = [Detection("circle", s, (0, 0, 9, 9), "red") for s in (0.5, 0.9, 0.7)]
    assert [clause.objects for clause in judge(asked, scene).include] == [(0,), (1, 2)]


def test_exclude_bounds_the_class_not_the_clause() -> None:
    asked = metadata([of("circle", color="red"), of("circle", color="blue")], [of("circle", 3)])
    both = [Detection("circle", s, (0, 0, 9, 9), c) for s, c in ((0.9, "red"), (0.8, "blue"))]
    assert judge(asked, both).value == 1
    assert judge(asked, [*both, Detection("circle", 0.5, (0, 0, 9, 9), "red")]).value == 1 / 2


def test_painting_an_object_as_its_clause_asks_never_lowers_the_value() -> None:
    rng = np.random.default_rng(3)
    raised = 0
    for _ in range(60):
        include = [of("circle", int(rng.integers(1, 3)), color=str(rng.choice(PAINT))) for _ in range(3)]
        asked, scene = metadata(include), scene_of(rng, {"circle": int(rng.integers(1, 6))}, PAINT)
        before = judge(asked, scene)
        for clause in before.include:
            for place in clause.objects:
                old = before.kept["circle"][place]
                new = [dataclasses.replace(d, color=clause.color) if d is old else d for d in scene]
                after = judge(asked, new).value
                assert after >= before.value - 1e-12
                raised += after > before.value
    assert raised > 20


def test_many_clauses_that_no_position_ties_are_exact() -> None:
    """Sixteen, a color each: every order of the objects, and there are 16! ways of dealing them out."""
    names = [COLORS[i % len(COLORS)] for i in range(16)]
    asked = metadata([of("circle", color=name) for name in names])
    check_apart(asked, 16)
    rng = np.random.default_rng(4)
    for _ in range(5):
        scores = rng.permutation(np.linspace(0.4, 0.9, 16))
        scene = [Detection("circle", float(s), (0, 0, 9, 9), n) for s, n in zip(scores, names, strict=True)]
        assert judge(asked, scene).value == 1
        fewer = sorted(scene, key=lambda d: -d.score)[:9]  # each right somewhere: 9 of 16 clauses
        assert judge(asked, fewer).value == pytest.approx(9 / 16)


def test_too_many_ways_are_refused_and_not_tried() -> None:
    tied = [of("circle"), *(of("circle", position=["left of", i]) for i in range(7))]
    with pytest.raises(ValueError, match=f"^key 'include': there are more than {MOST_WAYS} ways to assign .* 'circle'"):
        check_apart(metadata(tied), 16)
    check_apart(metadata(tied[:7]), 16)
    scene = [Detection("circle", 0.9, (0, 0, 9, 9))] * 8
    with pytest.raises(ValueError, match="more than 5040 ways"):
        judge(metadata(tied), scene)
    huge = [of("circle", 10**18), of("circle", 10**18, position=["left of", 0])]
    with pytest.raises(ValueError, match="more than 5040 ways"):
        assign(metadata(huge).include, Scene({"circle": scene}, {}))


def test_seven_in_a_row_are_found_among_all_orders() -> None:
    tied = [of("circle"), *(of("circle", position=["right of", i]) for i in range(6))]
    places = np.random.default_rng(5).permutation(7)
    scene = [Detection("circle", 0.9 - i / 100, (int(x) * 40, 0, int(x) * 40 + 20, 20)) for i, x in enumerate(places)]
    verdict = judge(metadata(tied), scene)
    assert verdict.value == 1
    assert [int(places[clause.objects[0]]) for clause in verdict.include] == list(range(7))

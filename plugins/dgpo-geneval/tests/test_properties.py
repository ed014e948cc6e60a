"""Properties over random prompts and scenes, against an oracle written from the benchmark's definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_core.types import Prompt
from dgpo_geneval.detector import Box, Detection, Thresholds
from dgpo_geneval.evaluator import Verdict, evaluate
from dgpo_geneval.metadata import RELATIONS, TASKS, Metadata, parse
from dgpo_geneval.variants import VariantName

CLASSES = ("a", "b", "c", "d")
PAINT = ("red", "blue")
THRESHOLDS = Thresholds(per_class=6)


@st.composite
def prompts(draw: st.DrawFn) -> Metadata:
    """Prompts with distinct classes, one to three clauses, chains of positions, and exclude clauses."""
    include: list[dict[str, Any]] = []
    for index, label in enumerate(CLASSES[: draw(st.integers(1, 3))]):
        clause: dict[str, Any] = {"class": label, "count": draw(st.integers(1, 3))}
        if draw(st.booleans()):
            clause["color"] = draw(st.sampled_from(PAINT))
        if index and draw(st.booleans()):
            clause["position"] = [draw(st.sampled_from(RELATIONS)), draw(st.integers(0, index - 1))]
        include.append(clause)
    asked = {c["class"]: c["count"] for c in include}
    exclude = [
        {"class": label, "count": asked.get(label, 0) + draw(st.integers(1, 2))}
        for label in draw(st.lists(st.sampled_from(CLASSES), unique=True, max_size=2))
    ]
    return parse(Prompt("p", {"tag": draw(st.sampled_from(TASKS)), "include": include, "exclude": exclude}))


corners = st.tuples(st.sampled_from((0, 40, 80)), st.sampled_from((0, 40, 80)))
detections = st.builds(
    lambda label, score, corner, color: Detection(label, score, (*corner, corner[0] + 20, corner[1] + 20), color),
    st.sampled_from(CLASSES),
    st.sampled_from((0.2, 0.3, 0.5, 0.85, 0.9, 0.95)),
    corners,
    st.sampled_from(PAINT),
)
scenes = st.lists(detections, max_size=14)


def judge(metadata: Metadata, scene: list[Detection], variant: VariantName = "geneval") -> Verdict:
    return evaluate(metadata, scene, variant=variant, thresholds=THRESHOLDS)


def stands(a: Box, b: Box, relation: str) -> bool:
    """The relation rule as one vector along the relation's axis."""
    axis = np.array({"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation])
    corners_a, corners_b = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))
    offset = corners_a.mean(0) - corners_b.mean(0)
    margin = 0.1 * abs(axis) @ (np.ptp(corners_a, axis=0) + np.ptp(corners_b, axis=0))
    along = offset @ axis
    return bool(along > margin and along - margin > 0.5 * np.linalg.norm(offset))


def oracle(metadata: Metadata, scene: list[Detection]) -> bool:
    """The benchmark's definition of correct, as one sentence of quantifiers."""
    bar = 0.9 if metadata.tag == "counting" else 0.3
    seen = {
        c: sorted((d for d in scene if d.label == c and d.score > bar), key=lambda d: -d.score)[:6] for c in CLASSES
    }
    best = [seen[clause.label][: clause.count] for clause in metadata.include]
    return all(
        len(objects) == clause.count
        and all(clause.color in (None, d.color) for d in objects)
        and (
            clause.position is None
            or all(stands(d.box, t.box, clause.position[0]) for d in objects for t in best[clause.position[1]])
        )
        for clause, objects in zip(metadata.include, best, strict=True)
    ) and all(len(seen[clause.label]) < clause.count for clause in metadata.exclude)


@settings(deadline=None)
@given(prompts(), scenes)
def test_bounds_and_correctness(metadata: Metadata, scene: list[Detection]) -> None:
    right = oracle(metadata, scene)
    bounded, official = judge(metadata, scene), judge(metadata, scene, "geneval-official")
    assert 0 <= bounded.value <= 1
    assert (bounded.value == 1) is right
    assert bounded.correct is official.correct is right
    assert official.value == float(right)


@settings(deadline=None)
@given(prompts(), scenes)
def test_flowgrpo_is_one_exactly_if_strict(metadata: Metadata, scene: list[Detection]) -> None:
    verdict = judge(metadata, scene, "geneval-flowgrpo")
    assert verdict.value <= 1
    assert (verdict.value == 1) is verdict.correct


def perfect(metadata: Metadata, scene: list[Detection], index: int) -> list[Detection]:
    """The scene with the objects of one clause replaced by what the clause asks for, far out on the right side of
    whatever is there; nothing else is touched."""
    clause = metadata.include[index]
    x, y = 50, 50
    if clause.position is not None:
        dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[clause.position[0]]
        centers = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in scene]
        reach = 10 * (1 + max((max(abs(cx), abs(cy)) for cx, cy in centers), default=0))
        x, y = int(x + dx * reach), int(y + dy * reach)
    ideal = Detection(clause.label, 0.99, (x - 5, y - 5, x + 5, y + 5), clause.color or "red")
    return [d for d in scene if d.label != clause.label] + [ideal] * clause.count


@settings(deadline=None, max_examples=300)
@given(prompts(), scenes, st.data())
def test_fixing_a_clause_never_lowers_the_value(
    metadata: Metadata, scene: list[Detection], data: st.DataObject
) -> None:
    before = judge(metadata, scene)
    broken = [i for i, clause in enumerate(before.include) if not clause.satisfied]
    if broken:
        fixed = judge(metadata, perfect(metadata, scene, data.draw(st.sampled_from(broken))))
        assert fixed.value >= before.value - 1e-12


@settings(deadline=None, max_examples=300)
@given(prompts(), scenes)
def test_fixing_every_clause_ends_at_one(metadata: Metadata, scene: list[Detection]) -> None:
    for index, clause in enumerate(metadata.include):
        # A clause with a position is always placed anew: its target may just have moved.
        if clause.position is not None or not judge(metadata, scene).include[index].satisfied:
            scene = perfect(metadata, scene, index)
    allowed = {clause.label: clause.count - 1 for clause in metadata.exclude}
    asked = {clause.label: clause.count for clause in metadata.include}
    trimmed = [
        d
        for label in CLASSES
        for d in sorted((s for s in scene if s.label == label), key=lambda s: -s.score)[
            : max(asked.get(label, 0), allowed.get(label, 99))
        ]
    ]
    assert judge(metadata, trimmed).value == 1


@settings(deadline=None)
@given(prompts(), scenes)
def test_objects_beyond_an_exclude_never_help(metadata: Metadata, scene: list[Detection]) -> None:
    for clause in metadata.exclude:
        objects = [d for d in scene if d.label == clause.label]
        if len(objects) >= clause.count:
            worst = min(objects, key=lambda d: d.score)
            fewer = list(scene)
            fewer.reverse()  # of equal scores the last one is the worst
            fewer.remove(worst)
            fewer.reverse()
            assert judge(metadata, fewer).value >= judge(metadata, scene).value - 1e-12


@settings(deadline=None)
@given(prompts(), scenes, st.data())
def test_painting_an_object_right_never_lowers_the_value(
    metadata: Metadata, scene: list[Detection], data: st.DataObject
) -> None:
    wanted = {clause.label: clause.color for clause in metadata.include if clause.color is not None}
    painted = [
        dataclasses.replace(d, color=wanted[d.label]) if d.label in wanted and data.draw(st.booleans()) else d
        for d in scene
    ]
    assert judge(metadata, painted).value >= judge(metadata, scene).value - 1e-12


@settings(deadline=None)
@given(prompts(), st.lists(detections, max_size=10, unique_by=lambda d: (d.label, d.score)), st.randoms())
def test_the_order_of_detections_does_not_matter(metadata: Metadata, scene: list[Detection], random: Any) -> None:
    shuffled = list(scene)
    random.shuffle(shuffled)
    for variant in ("geneval", "geneval-official", "geneval-flowgrpo"):
        assert judge(metadata, shuffled, variant) == judge(metadata, scene, variant)

"""`geneval-official` and `geneval-flowgrpo` against the two public programs, written anew over the arrays they hold.

djghosh13/geneval, evaluation/evaluate_images.py: `evaluate`, `evaluate_image`, `relative_position`. Flow-GRPO's and
DGPO's flow_grpo/gen_eval.py: `evaluate_reward`. A class's detections are a float32 array [n, 5] of boxes and scores, as
mmdet gives them; colors are looked up instead of classified.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dgpo_core.types import Prompt
from dgpo_geneval.detector import Detection, Thresholds
from dgpo_geneval.evaluator import evaluate
from dgpo_geneval.metadata import RELATIONS, TASKS, parse

LABELS, HUES = ("ape", "bee", "cow"), ("red", "blue")
Array = NDArray[np.float32]
Seen = dict[str, tuple[Array, list[str]]]
"""By class: rows (x0, y0, x1, y1, score), and the color of each."""


def position(a: Array, b: Array) -> set[str]:
    """Everything in float32, as rows of float32 make it."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a[:4], b[:4]
    offset = np.array([(ax0 + ax1) / 2 - (bx0 + bx1) / 2, (ay0 + ay1) / 2 - (by0 + by1) / 2])
    sizes = np.array([abs(ax1 - ax0) + abs(bx1 - bx0), abs(ay1 - ay0) + abs(by1 - by0)])
    assert offset.dtype == sizes.dtype == np.float32
    revised = np.maximum(abs(offset) - 0.1 * sizes, 0) * np.sign(offset)
    if (abs(revised) < 1e-3).all():
        return set()
    x, y = revised / np.linalg.norm(offset)
    return {n for n, yes in zip(RELATIONS, (x < -0.5, x > 0.5, y < -0.5, y > 0.5), strict=True) if yes}


def kept(seen: Seen, metadata: dict[str, Any]) -> Seen:
    """Above the threshold, the best first, at most sixteen of a class; classes without any left out."""
    bar = 0.9 if metadata["tag"] == "counting" else 0.3
    out: Seen = {}
    for label, (rows, colors) in seen.items():
        order = np.argsort(rows[:, 4])[::-1]
        order = order[rows[order, 4] > bar][:16]
        if len(order):
            out[label] = rows[order], [colors[i] for i in order]
    return out


def official(seen: Seen, metadata: dict[str, Any]) -> bool:
    """Yes or no: every clause by itself, about the best `count` of its class."""
    objects = kept(seen, metadata)
    correct, groups = True, []
    for clause in metadata["include"]:
        rows, colors = (part[: clause["count"]] for part in objects.get(clause["class"], (np.zeros((0, 5)), [])))
        matched = len(rows) == clause["count"]
        if matched and "color" in clause:
            matched = colors.count(clause["color"]) >= clause["count"]
        if matched and "position" in clause:
            relation, target = clause["position"]
            others = groups[target]
            matched = others is not None and all(relation in position(a, b) for a in rows for b in others)
        correct = correct and matched
        groups.append(rows if matched else None)
    for clause in metadata.get("exclude", []):
        if clause["class"] in objects and len(objects[clause["class"]][0]) >= clause["count"]:
            correct = False
    return correct


def flowgrpo(seen: Seen, metadata: dict[str, Any]) -> tuple[float, bool]:
    """The score that is trained on, and `strict_correct`: every clause by itself, about all of its class."""
    objects = kept(seen, metadata)
    rewards: list[float] = []
    correct, groups = True, []
    for clause in metadata["include"]:
        rows, colors = objects.get(clause["class"], (np.zeros((0, 5)), []))
        wanted, matched = clause["count"], True
        rewards.append(1 - abs(wanted - len(rows)) / wanted)
        if len(rows) != wanted:
            matched = False
            if "color" in clause or "position" in clause:
                rewards.append(0.0)
        else:
            if "color" in clause:
                rewards.append(1 - abs(wanted - colors.count(clause["color"])) / wanted)
                matched = colors.count(clause["color"]) == wanted
            if "position" in clause and matched:
                relation, target = clause["position"]
                if groups[target] is None:
                    matched = False
                    rewards.append(0.0)
                else:
                    if not all(relation in position(a, b) for a in rows for b in groups[target]):
                        matched = False
                        rewards.append(0.0)
                    rewards.append(1.0)
        correct = correct and matched
        groups.append(rows if matched else None)
    return sum(rewards) / len(rewards), correct


def prompt(rng: np.random.Generator) -> dict[str, Any]:
    """One to four clauses; two of one class are common, which no prompt of the benchmark has."""
    include: list[dict[str, Any]] = []
    for index in range(rng.integers(1, 5)):
        clause: dict[str, Any] = {"class": str(rng.choice(LABELS)), "count": int(rng.choice([1, 1, 1, 2, 3]))}
        if rng.random() < 0.4:
            clause["color"] = str(rng.choice(HUES))
        if index and rng.random() < 0.5:
            clause["position"] = [str(rng.choice(RELATIONS)), int(rng.integers(index))]
        include.append(clause)
    asked = {c["class"]: max(o["count"] for o in include if o["class"] == c["class"]) for c in include}
    exclude = [{"class": str(c), "count": asked.get(str(c), 0) + int(rng.integers(1, 3))}
               for c in rng.choice(LABELS, size=rng.integers(0, 3), replace=False)]  # fmt: skip
    return {"tag": str(rng.choice(TASKS)), "include": include, **({"exclude": exclude} if exclude else {})}


def scene(rng: np.random.Generator, metadata: dict[str, Any]) -> Seen:
    """Sometimes at random, else near what is asked for; scores all different, some next to a threshold."""
    seen: Seen = {}
    bars = [np.nextafter(np.float32(bar), np.float32(way)) for bar in (0.3, 0.9) for way in (0, 1)] + [np.float32(0.3)]
    for label in LABELS:
        wanted = [c for c in metadata["include"] if c["class"] == label]
        count = (
            int(rng.choice([0, 1, 2, 3, 18])) if rng.random() < 0.4 else max((c["count"] for c in wanted), default=0)
        )
        corners = rng.integers(0, 40, size=(count, 2)) * rng.choice([1, 4])
        scores = np.unique(np.concatenate([rng.uniform(0.2, 1, size=count), rng.uniform(0.95, 1, size=count)]))[-count:]
        rows = np.concatenate([corners, corners + rng.integers(1, 30, size=(count, 2)), scores[:count, None]], 1)
        rows = rows.astype(np.float32)
        if count and rng.random() < 0.3:
            rows[-1, 4] = rng.choice(bars)
        hue = next((c["color"] for c in wanted if "color" in c), "red")
        colors = [hue if rng.random() < 0.8 else str(rng.choice(HUES)) for _ in range(count)]
        order = rng.permutation(count)
        seen[label] = rows[order], [colors[i] for i in order]
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_the_public_programs(seed: int) -> None:
    """Every value equal to the last bit."""
    rng = np.random.default_rng(seed)
    yes, values, twice = 0, set(), 0
    for _ in range(250):
        metadata = prompt(rng)
        seen = scene(rng, metadata)
        detections = [
            Detection(label, float(score), (float(x0), float(y0), float(x1), float(y1)), color)
            for label, (rows, colors) in seen.items()
            for (x0, y0, x1, y1, score), color in zip(rows, colors, strict=True)
        ]
        parsed = parse(Prompt("p", metadata))
        verdict = evaluate(parsed, detections, variant="geneval-official", thresholds=Thresholds())
        assert (verdict.value, verdict.correct) == (float(official(seen, metadata)), official(seen, metadata))
        strict = evaluate(parsed, detections, variant="geneval-flowgrpo", thresholds=Thresholds())
        assert (strict.value, strict.correct) == flowgrpo(seen, metadata)
        yes += verdict.correct
        values.add(strict.value)
        twice += len({c["class"] for c in metadata["include"]}) < len(metadata["include"])
    assert 20 < yes < 230
    assert len(values) > 30
    assert twice > 80


@pytest.mark.parametrize("variant", ["geneval", "geneval-official", "geneval-flowgrpo"])
@pytest.mark.parametrize(("tag", "bar"), [("colors", 0.3), ("counting", 0.9)])
def test_scores_at_a_threshold_fall_where_float32_has_them(variant: Any, tag: str, bar: float) -> None:
    """float32(0.3) is more than 0.3 as float64 and float32(0.9) less than 0.9; neither is above its threshold."""
    near = np.float32(bar)
    for score in (np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(1))):
        rows = np.array([[0, 0, 9, 9, score]], dtype=np.float32)
        expected = bool((rows[:, 4] > bar)[0])
        parsed = parse(Prompt("p", {"tag": tag, "include": [{"class": "ape", "count": 1}]}))
        verdict = evaluate(
            parsed, [Detection("ape", float(score), (0, 0, 9, 9))], variant=variant, thresholds=Thresholds()
        )
        assert verdict.correct is expected is bool(score > near)

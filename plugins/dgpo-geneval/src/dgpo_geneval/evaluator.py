"""GenEval's evaluator: what a prompt asks for against what a detector saw. Pure; no torch.

Rules after Ghosh et al., arXiv 2310.11513, and the two public programs that the variants reproduce. Which objects a
clause is about stands in `assignment`, how it is judged in `clauses`, how the judged become one number in `variants`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgpo_geneval.assignment import assign, best_of_class, shared_classes
from dgpo_geneval.clauses import Scene, judge_exclude, judge_include
from dgpo_geneval.detector import Detection, Thresholds
from dgpo_geneval.metadata import Include, Metadata
from dgpo_geneval.precision import float32
from dgpo_geneval.variants import VARIANTS, ExcludeResult, IncludeResult, Variant, VariantName

__all__ = ["ClassifyColor", "ColorUnknown", "Verdict", "colorless", "evaluate", "keep"]

ClassifyColor = Callable[[Sequence[Detection]], Sequence[str]]
"""Detections of one image to one color name each."""


class ColorUnknown(ValueError):
    """A color had to be judged, but the detection carries none and there is no classifier to ask."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgment of one image.

    value: the variant's score. correct: its yes or no: `geneval-official` gives the benchmark's own (counts at least,
    `exclude` obeyed), `geneval` the same with different objects for clauses of one class, `geneval-flowgrpo` its
    `strict` (counts exact, `exclude` not looked at).
    kept: what was seen, by label, the best first.
    """

    value: float
    correct: bool
    include: tuple[IncludeResult, ...]
    exclude: tuple[ExcludeResult, ...]
    kept: Mapping[str, Sequence[Detection]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reason(self) -> str:
        """What is wrong, clause by clause; empty if nothing is."""
        reasons = [c.reason for c in self.include] + [c.reason for c in self.exclude]
        return "; ".join(reason for reason in reasons if reason)

    def clauses(self) -> list[dict[str, Any]]:
        """Every clause's result as JSON-able values, include clauses first."""
        return [c.as_dict() for c in self.include] + [c.as_dict() for c in self.exclude]


def keep(detections: Sequence[Detection], threshold: float, per_class: int) -> dict[str, list[Detection]]:
    """Detections by label: those that score above `threshold`, the best first, at most `per_class` of a label.

    Scores are compared with the threshold as float32, as in the benchmark, and with one another in full. Equal scores
    keep the detector's order. No overlapping boxes are removed. Raises ValueError for a score or a box that is not
    finite: such a detection would drop out unseen.
    """
    for detection in detections:
        if not all(map(math.isfinite, (detection.score, *detection.box))):
            raise ValueError(f"detection of {detection.label!r} has score {detection.score} and box {detection.box}")
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if float32(detection.score) > float32(threshold):
            found.setdefault(detection.label, []).append(detection)
    return {label: kept[:per_class] for label, kept in found.items()}


def colorless(
    metadata: Metadata, detections: Sequence[Detection], *, variant: VariantName, thresholds: Thresholds
) -> list[Detection]:
    """The detections whose color the verdict depends on and that carry none, in the order in which `evaluate` asks for
    them: so that a classifier can be asked about many images at once, before any is judged."""
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    asked = _colored(metadata.include, found, VARIANTS[variant])
    return [detection for objects in asked.values() for detection in objects if detection.color is None]


def _colored(
    include: Sequence[Include], found: Mapping[str, Sequence[Detection]], rules: Variant
) -> dict[str, Sequence[Detection]]:
    """The objects, by class, whose colors the verdict depends on: none where no clause with a color has its count."""
    asked: dict[str, Sequence[Detection]] = {}
    for clause in include:
        objects = found.get(clause.label, [])
        enough = len(objects) == clause.count if rules.exact else len(objects) >= clause.count
        if clause.color is not None and enough:
            reach = clause.count
            if rules.apart:
                reach = sum(other.count for other in include if other.label == clause.label)
            asked[clause.label] = max(asked.get(clause.label, []), objects[:reach], key=len)
    return asked


def evaluate(
    metadata: Metadata,
    detections: Sequence[Detection],
    *,
    variant: VariantName,
    thresholds: Thresholds,
    classify_color: ClassifyColor | None = None,
) -> Verdict:
    """Judge one image's detections, in any order.

    Colors that detections carry are used; `classify_color` is asked for the others, and only where the verdict
    depends on it. Raises ColorUnknown if a color is needed and nobody knows it; ValueError as `keep` and
    `assignment.assign` do.
    """
    rules = VARIANTS[variant]
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    asked = _colored(metadata.include, found, rules)
    scene = Scene(found, {label: _colors(objects, classify_color) for label, objects in asked.items()})
    objects = (assign if rules.apart else best_of_class)(metadata.include, scene)
    shared = frozenset(shared_classes(metadata.include)) if rules.apart else frozenset()
    judged = judge_include(
        metadata.include, range(len(metadata.include)), objects, scene, exact=rules.exact, shared=shared
    )
    include = tuple(judged.values())
    exclude = () if rules.exact else tuple(judge_exclude(c, scene.count(c.label)) for c in metadata.exclude)
    correct = all(c.satisfied for c in include) and all(c.satisfied for c in exclude)
    return Verdict(rules.value(include, exclude), correct, include, exclude, found)


def _colors(objects: Sequence[Detection], classify_color: ClassifyColor | None) -> tuple[str, ...]:
    """The color of each object: its own, else the classifier's."""
    unknown = [detection for detection in objects if detection.color is None]
    if not unknown:
        return tuple(d.color for d in objects if d.color is not None)
    if classify_color is None:
        raise ColorUnknown(
            f"the color of {unknown[0].label!r} is needed, but the detector gives no colors and there is no "
            "color classifier"
        )
    answers = list(classify_color(unknown))
    if len(answers) != len(unknown):
        raise ValueError(f"the color classifier gave {len(answers)} colors for {len(unknown)} objects")
    named = iter(answers)
    return tuple(next(named) if d.color is None else d.color for d in objects)

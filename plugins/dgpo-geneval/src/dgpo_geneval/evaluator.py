"""GenEval's evaluator: compares the requirements of a prompt with detections. Does not import torch.

Follows Ghosh et al., arXiv 2310.11513, and the two public programs that the variants reproduce. `assignment` assigns
objects to clauses, `clauses` evaluates each clause, `variants` combines the results into one number.
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
"""Function from detections of one image to one color name each."""


class ColorUnknown(ValueError):
    """A color is required, but the detection has none and there is no color classifier."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The evaluation of one image.

    value: the variant's score. correct: for `geneval-official`, the benchmark's result (at least the required counts,
    `exclude` respected); for `geneval`, the same with distinct objects for clauses of one class; for
    `geneval-flowgrpo`, its `strict` (exact counts, `exclude` ignored). kept: detections by label, highest scores first.
    """

    value: float
    correct: bool
    include: tuple[IncludeResult, ...]
    exclude: tuple[ExcludeResult, ...]
    kept: Mapping[str, Sequence[Detection]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reason(self) -> str:
        """The reasons of all violated clauses; empty if there are none."""
        reasons = [c.reason for c in self.include] + [c.reason for c in self.exclude]
        return "; ".join(reason for reason in reasons if reason)

    def clauses(self) -> list[dict[str, Any]]:
        """Return the results of all clauses as JSON-serializable values, include clauses first."""
        return [c.as_dict() for c in self.include] + [c.as_dict() for c in self.exclude]


def keep(detections: Sequence[Detection], threshold: float, per_class: int) -> dict[str, list[Detection]]:
    """Return detections by label: at most `per_class` whose score exceeds `threshold`, highest scores first.

    Scores are compared with the threshold in float32, as in the benchmark, and with each other in full precision. Equal
    scores keep the detector's order. Overlapping boxes are not removed. Raises ValueError for a nonfinite score or box,
    which would otherwise be dropped silently.
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
    """Return the detections without a color whose color is required, in the order in which `evaluate` requests them.

    With it, a classifier can process many images in one call before they are evaluated.
    """
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    colored = _colored(metadata.include, found, VARIANTS[variant])
    return [detection for objects in colored.values() for detection in objects if detection.color is None]


def _colored(
    include: Sequence[Include], found: Mapping[str, Sequence[Detection]], rules: Variant
) -> dict[str, Sequence[Detection]]:
    """Return the objects by class whose colors are required, for clauses with a color whose count is met."""
    colored: dict[str, Sequence[Detection]] = {}
    for clause in include:
        objects = found.get(clause.label, [])
        enough = len(objects) == clause.count if rules.exact else len(objects) >= clause.count
        if clause.color is not None and enough:
            reach = clause.count
            if rules.apart:
                reach = sum(other.count for other in include if other.label == clause.label)
            colored[clause.label] = max(colored.get(clause.label, []), objects[:reach], key=len)
    return colored


def evaluate(
    metadata: Metadata,
    detections: Sequence[Detection],
    *,
    variant: VariantName,
    thresholds: Thresholds,
    classify_color: ClassifyColor | None = None,
) -> Verdict:
    """Evaluate the detections of one image, in any order.

    `classify_color` is called for required colors that the detections do not have. Raises ColorUnknown if there is no
    classifier for a required color; ValueError as `keep` and `assignment.assign` do.
    """
    rules = VARIANTS[variant]
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    colored = _colored(metadata.include, found, rules)
    scene = Scene(found, {label: _colors(objects, classify_color) for label, objects in colored.items()})
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
    """Return the color of each object: its own, or else the classifier's."""
    unknown = [detection for detection in objects if detection.color is None]
    if not unknown:
        return tuple(d.color for d in objects if d.color is not None)
    if classify_color is None:
        raise ColorUnknown(
            f"the color of {unknown[0].label!r} is required, but the detector does not name colors and there is no "
            "color classifier"
        )
    answers = list(classify_color(unknown))
    if len(answers) != len(unknown):
        raise ValueError(f"the color classifier returned {len(answers)} colors for {len(unknown)} objects")
    named = iter(answers)
    return tuple(next(named) if d.color is None else d.color for d in objects)

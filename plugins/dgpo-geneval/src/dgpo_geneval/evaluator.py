"""GenEval's evaluator: what a prompt asks for against what a detector saw. Pure; no torch.

Rules after Ghosh et al., arXiv 2310.11513, and the two public programs that the variants reproduce; how the judged
clauses become one number stands in `variants`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgpo_geneval.detector import Detection, Thresholds
from dgpo_geneval.geometry import relations
from dgpo_geneval.metadata import Exclude, Include, Metadata
from dgpo_geneval.variants import VARIANTS, ExcludeResult, IncludeResult, RelationResult, VariantName

__all__ = ["ClassifyColor", "ColorUnknown", "Verdict", "colorless", "evaluate", "keep"]

ClassifyColor = Callable[[Sequence[Detection]], Sequence[str]]
"""Detections of one image to one colour name each."""


class ColorUnknown(ValueError):
    """A colour had to be judged, but the detection carries none and there is no classifier to ask."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one image.

    value: the variant's score. correct: its yes or no: `geneval` and `geneval-official` give the benchmark's own
    (counts at least, `exclude` obeyed); `geneval-flowgrpo` gives its `strict` (counts exact, `exclude` not looked at).
    kept: what was seen, by label, the best first: what the clauses' objects are the first `required` of.
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

    Equal scores keep the detector's order. No overlapping boxes are removed. Raises ValueError for a score or a box
    that is not finite: such a detection would drop out unseen.
    """
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if not all(map(math.isfinite, (detection.score, *detection.box))):
            raise ValueError(f"detection of {detection.label!r} has score {detection.score} and box {detection.box}")
        if detection.score > threshold:
            found.setdefault(detection.label, []).append(detection)
    return {label: kept[:per_class] for label, kept in found.items()}


def colorless(
    metadata: Metadata, detections: Sequence[Detection], *, variant: VariantName, thresholds: Thresholds
) -> list[Detection]:
    """The detections whose colour the verdict depends on and that carry none, in the order in which `evaluate` asks for
    them: so that a classifier can be asked about many images at once, before any is judged."""
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    unknown: list[Detection] = []
    for clause in metadata.include:
        objects = found.get(clause.label, [])
        if clause.color is not None and _enough(clause, objects, exact=VARIANTS[variant].exact):
            unknown += [detection for detection in objects[: clause.count] if detection.color is None]
    return unknown


def _enough(clause: Include, objects: Sequence[Detection], *, exact: bool) -> bool:
    return len(objects) == clause.count if exact else len(objects) >= clause.count


def evaluate(
    metadata: Metadata,
    detections: Sequence[Detection],
    *,
    variant: VariantName,
    thresholds: Thresholds,
    classify_color: ClassifyColor | None = None,
) -> Verdict:
    """Judge one image's detections, in any order.

    Colours that detections carry are used; `classify_color` is asked for the others, and only where the verdict
    depends on it. Raises ColorUnknown if a colour is needed and nobody knows it.
    """
    rules = VARIANTS[variant]
    found = keep(detections, thresholds.for_task(metadata.tag), thresholds.per_class)
    include: list[IncludeResult] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in metadata.include:
        objects = found.get(clause.label, [])
        result = _judge(clause, objects, matched, exact=rules.exact, classify_color=classify_color)
        include.append(result)
        matched.append(objects[: clause.count] if result.satisfied else None)
    exclude = () if rules.exact else tuple(_bound(c, len(found.get(c.label, []))) for c in metadata.exclude)
    correct = all(c.satisfied for c in include) and all(c.satisfied for c in exclude)
    return Verdict(rules.value(include, exclude), correct, tuple(include), exclude, found)


def _judge(
    clause: Include,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    *,
    exact: bool,
    classify_color: ClassifyColor | None,
) -> IncludeResult:
    """One include clause: its count, then the colours, then the relation of the top `count` objects, best first.
    Colours need the count; the relation needs both."""
    reasons: list[str] = []
    enough = _enough(clause, objects, exact=exact)
    top = objects[: clause.count]
    colors: tuple[str, ...] | None = None
    relation: RelationResult | None = None
    if not enough:
        reasons.append(f"expected {clause.count}{'' if exact else ' or more'} {clause.label}, found {len(objects)}")
    elif clause.color is not None:
        colors = _colors(top, classify_color)
        if any(color != clause.color for color in colors):
            reasons.append(f"expected {clause.count} {clause.color} {clause.label}, found {', '.join(colors)}")
    if clause.position is not None and not reasons:
        expected, target = clause.position
        relation = _relation(expected, target, top, matched[target])
        if not relation.holds:
            reasons.append(f"expected {clause.label} {expected} clause {target}, {relation.describe()}")
    return IncludeResult(
        label=clause.label,
        required=clause.count,
        found=len(objects),
        enough=enough,
        color=clause.color,
        colors=colors,
        position=clause.position,
        relation=relation,
        reason="; ".join(reasons),
    )


def _colors(objects: Sequence[Detection], classify_color: ClassifyColor | None) -> tuple[str, ...]:
    """The colour of each object: its own, else the classifier's."""
    unknown = [detection for detection in objects if detection.color is None]
    if not unknown:
        return tuple(d.color for d in objects if d.color is not None)
    if classify_color is None:
        raise ColorUnknown(
            f"the colour of {unknown[0].label!r} is needed, but the detector gives no colours and there is no "
            "colour classifier"
        )
    answers = list(classify_color(unknown))
    if len(answers) != len(unknown):
        raise ValueError(f"the colour classifier gave {len(answers)} colours for {len(unknown)} objects")
    named = iter(answers)
    return tuple(next(named) if d.color is None else d.color for d in objects)


def _relation(
    expected: str, target: int, objects: Sequence[Detection], targets: Sequence[Detection] | None
) -> RelationResult:
    """Whether every object stands in the relation to every object of the (satisfied) target clause."""
    if targets is None:
        return RelationResult(expected, target, target_matched=False, pairs=0, holding=0, seen=())
    seen = [relations(a.box, b.box) for a in objects for b in targets]
    names = tuple(" and ".join(sorted(pair)) or "none" for pair in seen)
    holding = [expected in pair for pair in seen]
    right = tuple(all(holding[i : i + len(targets)]) for i in range(0, len(seen), len(targets)))
    return RelationResult(expected, target, True, len(seen), sum(holding), names, right)


def _bound(clause: Exclude, found: int) -> ExcludeResult:
    """One exclude clause: fewer than its count."""
    reason = "" if found < clause.count else f"expected fewer than {clause.count} {clause.label}, found {found}"
    return ExcludeResult(label=clause.label, bound=clause.count, found=found, reason=reason)

"""Evaluate one clause of a prompt on the objects assigned to it. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dgpo_geneval.detector import Detection
from dgpo_geneval.geometry import relations
from dgpo_geneval.metadata import Exclude, Include
from dgpo_geneval.variants import ExcludeResult, IncludeResult, RelationResult

__all__ = ["Places", "Scene", "judge_exclude", "judge_include"]

Places = tuple[int, ...]
"""Indices of objects of a class in `Scene.kept`, ascending."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The detections of an image. kept: objects by label, highest scores first; colors: the colors of the first objects
    of a label, for labels whose colors are required."""

    kept: Mapping[str, Sequence[Detection]]
    colors: Mapping[str, Sequence[str]]

    def count(self, label: str) -> int:
        """Return the number of detected objects of a class."""
        return len(self.kept.get(label, ()))


def judge_include(
    include: Sequence[Include],
    which: Iterable[int],
    objects: Mapping[int, Places],
    scene: Scene,
    *,
    exact: bool,
    shared: frozenset[str] = frozenset(),
) -> dict[int, IncludeResult]:
    """Evaluate the clauses `which`, ascending indices that include the targets of positions, each on its `objects`.
    shared: classes whose clauses have distinct objects."""
    results: dict[int, IncludeResult] = {}
    for index in which:
        results[index] = _judge(include, index, objects, results, scene, exact=exact, shared=shared)
    return results


def _judge(
    include: Sequence[Include],
    index: int,
    objects: Mapping[int, Places],
    results: Mapping[int, IncludeResult],
    scene: Scene,
    *,
    exact: bool,
    shared: frozenset[str],
) -> IncludeResult:
    """Evaluate one include clause: its count, then, if that is met, the colors, then, if both are met, the relation."""
    clause, assigned = include[index], objects[index]
    found = scene.count(clause.label)
    enough = found == clause.count if exact else len(assigned) == clause.count
    reasons: list[str] = []
    colors: tuple[str, ...] | None = None
    relation: RelationResult | None = None
    if not enough:
        seen = f"{len(assigned)} of {found} free" if clause.label in shared else str(found)
        reasons.append(f"expected {clause.count}{'' if exact else ' or more'} {clause.label}, found {seen}")
    elif clause.color is not None:
        named = scene.colors[clause.label]
        colors = tuple(named[place] for place in assigned)
        if any(color != clause.color for color in colors):
            reasons.append(f"expected {clause.count} {clause.color} {clause.label}, found {', '.join(colors)}")
    if clause.position is not None and not reasons:
        expected, target = clause.position
        detections = [scene.kept[clause.label][place] for place in assigned]
        targets = None
        if results[target].satisfied:
            targets = [scene.kept[include[target].label][place] for place in objects[target]]
        relation = _relation(expected, target, detections, targets)
        if not relation.holds:
            reasons.append(f"expected {clause.label} {expected} clause {target}, {relation.describe()}")
    return IncludeResult(
        label=clause.label,
        required=clause.count,
        found=found,
        objects=assigned,
        shared=clause.label in shared,
        enough=enough,
        color=clause.color,
        colors=colors,
        position=clause.position,
        relation=relation,
        reason="; ".join(reasons),
    )


def _relation(
    expected: str, target: int, objects: Sequence[Detection], targets: Sequence[Detection] | None
) -> RelationResult:
    """Compare every object with every object of the target clause; targets: None if that clause is not satisfied."""
    if targets is None:
        return RelationResult(expected, target, target_matched=False, pairs=0, holding=0, seen=())
    seen = [relations(a.box, b.box) for a in objects for b in targets]
    names = tuple(" and ".join(sorted(pair)) or "none" for pair in seen)
    holding = [expected in pair for pair in seen]
    right = tuple(all(holding[i : i + len(targets)]) for i in range(0, len(seen), len(targets)))
    return RelationResult(expected, target, True, len(seen), sum(holding), names, right)


def judge_exclude(clause: Exclude, found: int) -> ExcludeResult:
    """Evaluate one exclude clause: there must be fewer objects than its count."""
    reason = "" if found < clause.count else f"expected fewer than {clause.count} {clause.label}, found {found}"
    return ExcludeResult(label=clause.label, bound=clause.count, found=found, reason=reason)

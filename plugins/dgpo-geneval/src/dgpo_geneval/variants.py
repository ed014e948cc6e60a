"""The three ways of turning judged clauses into one number, and the clauses' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["VARIANTS", "ExcludeResult", "IncludeResult", "RelationResult", "Variant", "VariantName", "components"]

VariantName = Literal["geneval", "geneval-official", "geneval-flowgrpo"]


@dataclass(frozen=True, slots=True)
class RelationResult:
    """How the objects of a clause lie to those of its target clause.

    target_matched: whether the target clause was itself satisfied (else nothing is compared); pairs, holding: pairs of
    object and target, and those in the expected relation; seen: the relations of each pair; right: whether each object
    stands in it to every target.
    """

    expected: str
    target: int
    target_matched: bool
    pairs: int
    holding: int
    seen: tuple[str, ...]
    right: tuple[bool, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every pair stands in the relation."""
        return self.target_matched and self.holding == self.pairs

    def describe(self) -> str:
        """What was seen, for the reason."""
        return f"found {', '.join(self.seen)}" if self.target_matched else f"but clause {self.target} is not satisfied"


@dataclass(frozen=True, slots=True)
class IncludeResult:
    """One include clause. `colors` and `relation` are None where they were not asked for or not reached.

    found: detections of the class; objects: those that the clause is about, by their place among them, the best being
    0: at most `required`. shared: whether other clauses of the class are about others of them.
    """

    label: str
    required: int
    found: int
    objects: tuple[int, ...]
    shared: bool
    enough: bool
    color: str | None
    colors: tuple[str, ...] | None
    position: tuple[str, int] | None
    relation: RelationResult | None
    reason: str

    @property
    def right_colors(self) -> int:
        """How many of the objects have the color asked for; 0 where colors were not reached."""
        return sum(color == self.color for color in self.colors or ())

    @property
    def satisfied(self) -> bool:
        """Whether count, color and relation are as asked."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        out: dict[str, Any] = {
            "kind": "include",
            "class": self.label,
            "required": self.required,
            "found": self.found,
            "satisfied": self.satisfied,
            "reason": self.reason,
        }
        if self.shared:
            out["used"] = len(self.objects)
        if self.color is not None:
            out["color"] = self.color
            out["colors"] = None if self.colors is None else list(self.colors)
        if self.position is not None:
            out["position"] = list(self.position)
            out["relations"] = None if self.relation is None else list(self.relation.seen)
            out["relation_holds"] = self.relation is not None and self.relation.holds
        return out


@dataclass(frozen=True, slots=True)
class ExcludeResult:
    """One exclude clause: fewer than `bound` objects were wanted."""

    label: str
    bound: int
    found: int
    reason: str

    @property
    def satisfied(self) -> bool:
        """Whether there are few enough."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values; `required` is the largest number allowed."""
        return {
            "kind": "exclude",
            "class": self.label,
            "required": self.bound - 1,
            "found": self.found,
            "satisfied": self.satisfied,
            "reason": self.reason,
        }


Value = Callable[[Sequence[IncludeResult], Sequence[ExcludeResult]], float]


@dataclass(frozen=True, slots=True)
class Variant:
    """exact: counts must be equal to what was asked for, and `exclude` is not looked at; else they must reach it.
    apart: clauses of one class are about different objects of it; else all of them about its best ones.
    """

    exact: bool
    apart: bool
    value: Value


def official(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """The benchmark's yes or no (djghosh13/geneval): 1 if every clause is satisfied, else 0. Clauses are independent,
    as there: two of one class are both about its best objects, so a red and a blue one are never right together."""
    return float(all(c.satisfied for c in include) and all(c.satisfied for c in exclude))


def flowgrpo(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """Flow-GRPO's and DGPO's training reward, its defects kept: the mean of components whose number varies.

    Each clause adds 1 - |required - found| / required (unbounded below). If the count is not exact, one 0 more for a
    clause with a color or a position. Else 1 - (required - right colors) / required for a color; and, unless a
    color was wrong, for a position: 0 if the target clause is not satisfied, else 1 *always*, after a 0 for a wrong
    relation.
    """
    parts: list[float] = []
    for clause in include:
        parts.append(1 - abs(clause.required - clause.found) / clause.required)
        if not clause.enough:
            if clause.color is not None or clause.position is not None:
                parts.append(0.0)
            continue
        if clause.color is not None:
            parts.append(1 - (clause.required - clause.right_colors) / clause.required)
        if clause.relation is not None and not clause.relation.holds:
            parts.append(0.0)
        if clause.relation is not None and clause.relation.target_matched:
            parts.append(1.0)
    return sum(parts) / len(parts)


def components(clause: IncludeResult) -> list[float]:
    """What a clause adds to `bounded`, each in [0, 1]; their number depends on the prompt alone."""
    parts = [len(clause.objects) / clause.required]
    if clause.color is not None:
        parts.append(clause.right_colors / clause.required)
    if clause.position is not None:
        relation = clause.relation
        parts.append(relation.holding / relation.pairs if relation is not None and relation.pairs else 0.0)
    return parts


def bounded(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """The default for training: in [0, 1], 1 exactly if every demand is met, which is what the benchmark calls correct
    wherever no two clauses name the same class.

    value = mean(components) * product(factors). The components' number depends on the prompt alone, so none is gained
    or lost by what is in the image; each is 1 exactly where its demand is met:
      count     objects / required                                            for every include clause
      color    right colors among the objects / required, 0 if there are fewer           if it has a color
      position  pairs in the relation / pairs, 0 if its count or color or its target fails   if it has a position
      factor    1 if found < bound, else max(0, 1 - excess / max(1, bound - 1)), excess = found - (bound - 1)
                                                                              for every exclude clause
    A clause's objects are the best `required` of its class. Where several clauses name the class they are different
    ones: the best of it, as many as all of them require, are dealt out so that the value is largest (`assignment`).
    Satisfying one more clause, the others staying as they are, never lowers the value: that clause's own parts become
    1, and positions that refer to it had 0 before.
    """
    parts = [part for clause in include for part in components(clause)]
    value = sum(parts) / len(parts)
    for bound in exclude:
        allowed = bound.bound - 1
        value *= max(0.0, 1 - max(0, bound.found - allowed) / max(1, allowed))
    return value


VARIANTS: Mapping[VariantName, Variant] = MappingProxyType(
    {
        "geneval": Variant(exact=False, apart=True, value=bounded),
        "geneval-official": Variant(exact=False, apart=False, value=official),
        "geneval-flowgrpo": Variant(exact=True, apart=False, value=flowgrpo),
    }
)

"""The results of clauses, and the three variants that combine them into one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["VARIANTS", "ExcludeResult", "IncludeResult", "RelationResult", "Variant", "VariantName", "components"]

VariantName = Literal["geneval", "geneval-official", "geneval-flowgrpo"]


@dataclass(frozen=True, slots=True)
class RelationResult:
    """The relation of the objects of a clause to those of its target clause.

    target_matched: whether the target clause is satisfied; if not, nothing is compared. pairs, holding: the number of
    pairs of object and target, and of those in the expected relation; seen: the relations of each pair; right: for
    each object, whether it has the expected relation to every target.
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
        """Whether every pair has the expected relation."""
        return self.target_matched and self.holding == self.pairs

    def describe(self) -> str:
        """Return the detected relations, as part of a reason."""
        return f"found {', '.join(self.seen)}" if self.target_matched else f"but clause {self.target} is not satisfied"


@dataclass(frozen=True, slots=True)
class IncludeResult:
    """The result of an include clause. `colors` and `relation` are None if not required or not evaluated.

    found: number of detections of the class; objects: the indices of those assigned to the clause, at most `required`,
    where 0 is the best; shared: whether other clauses of the class have other objects.
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
        """Number of objects with the required color; 0 if colors were not evaluated."""
        return sum(color == self.color for color in self.colors or ())

    @property
    def satisfied(self) -> bool:
        """Whether count, color and relation match the requirements."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
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
    """The result of an exclude clause, which requires fewer than `bound` objects."""

    label: str
    bound: int
    found: int
    reason: str

    @property
    def satisfied(self) -> bool:
        """Whether there are fewer than `bound` objects."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values; `required` is the maximum number of objects."""
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
    """A variant of GenEval.

    exact: counts must be equal to the required ones, and `exclude` is ignored; otherwise they must be at least the
    required ones. apart: clauses of one class have distinct objects; otherwise all use its best objects.
    """

    exact: bool
    apart: bool
    value: Value


def official(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """Return the benchmark's result (djghosh13/geneval): 1 if every clause is satisfied, else 0.

    Clauses are independent, as in the benchmark: two clauses of one class both use its best objects, so clauses for a
    red and a blue object are never both satisfied.
    """
    return float(all(c.satisfied for c in include) and all(c.satisfied for c in exclude))


def flowgrpo(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """Return the training reward of Flow-GRPO and DGPO, including its defects: the mean of components, whose number
    varies.

    Each clause adds 1 - |required - found| / required (unbounded below). If the count is not exact, a clause with a
    color or a position adds 0. Otherwise, a color adds 1 - (required - right colors) / required; and, if all colors are
    right, a position adds 0 for a wrong relation or an unsatisfied target clause, and for a satisfied target clause
    also 1, *even for a wrong relation*.
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
    """Return the components of a clause for `bounded`, each in [0, 1]; their number depends on the prompt alone."""
    parts = [len(clause.objects) / clause.required]
    if clause.color is not None:
        parts.append(clause.right_colors / clause.required)
    if clause.position is not None:
        relation = clause.relation
        parts.append(relation.holding / relation.pairs if relation is not None and relation.pairs else 0.0)
    return parts


def bounded(include: Sequence[IncludeResult], exclude: Sequence[ExcludeResult]) -> float:
    """Return the default training reward in [0, 1]. It is 1 if and only if every requirement is met; without clauses of
    the same class, these are the images that the benchmark counts as correct.

    value = mean(components) * product(factors). The number of components depends on the prompt alone. Each is 1 if and
    only if its requirement is met:
      count     objects / required                                            for every include clause
      color    right colors among the objects / required, 0 if there are fewer           if it has a color
      position  pairs in the relation / pairs, 0 if its count or color or its target fails   if it has a position
      factor    1 if found < bound, else max(0, 1 - excess / max(1, bound - 1)), excess = found - (bound - 1)
                                                                              for every exclude clause
    The objects of a clause are the best `required` of its class. If several clauses name the class, the best objects,
    as many as all of these clauses require, are assigned to maximize the value (`assignment`). Satisfying one more
    clause never lowers the value if the others do not change: the components of that clause become 1, and positions
    that refer to it were 0 before.
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

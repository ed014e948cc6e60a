"""Diagnostics of a GenEval reward: the clauses as text, and marks on the image. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dgpo_core.types import Prompt
from dgpo_geneval.evaluator import Verdict
from dgpo_geneval.variants import VARIANTS, ExcludeResult, IncludeResult, VariantName

__all__ = ["diagnose"]


def diagnose(prompt: Prompt, variant: VariantName, verdict: Verdict | None, reason: str | None) -> dict[str, Any]:
    """Return the JSON-serializable diagnostics of one sample.

    `reason`, `clauses` and `marks`: see `dgpo_schemas.diagnostics`; `reason` is None if the sample was scored, and else
    `correct` and `value` are None. `wrong`: the violated clauses as text, empty if there are none; `details`: the
    result of each clause for programs.
    """
    exact = VARIANTS[variant].exact
    return {
        "correct": None if verdict is None else verdict.correct,
        "value": None if verdict is None else verdict.value,
        "tag": prompt.metadata.get("tag"),
        "reason": reason,
        "wrong": "" if verdict is None else verdict.reason,
        "clauses": [] if verdict is None else list(_clauses(verdict, exact)),
        "marks": [] if verdict is None else list(_marks(verdict, exact)),
        "details": [] if verdict is None else verdict.clauses(),
    }


def _clauses(verdict: Verdict, exact: bool) -> Iterator[dict[str, Any]]:
    """Yield one line per clause: what is required, and what was found."""
    for clause in verdict.include:
        required = f"{clause.color or ''} {clause.label}"
        count = f"{len(clause.objects)} of {clause.found}" if clause.shared else str(clause.found)
        found = [count, *(clause.colors or ())]
        if clause.position is not None:
            relation, target = clause.position
            other = verdict.include[target].label
            required += f" {relation} the {other}"
            if clause.relation is not None:
                found += clause.relation.seen if clause.relation.target_matched else [f"but the {other} does not match"]
        number = f"{'exactly' if exact else 'at least'} {clause.required}"
        yield {
            "text": f"{' '.join(required.split())}, {number}: found {', '.join(found)}",
            "ok": clause.satisfied,
        }
    for bound in verdict.exclude:
        allowed = f"no {bound.label}" if bound.bound == 1 else f"at most {bound.bound - 1} {bound.label}"
        yield {"text": f"{allowed}: found {bound.found}", "ok": bound.satisfied}


def _marks(verdict: Verdict, exact: bool) -> Iterator[dict[str, Any]]:
    """Yield a box for each detected object, including those that no clause names."""
    for label, objects in verdict.kept.items():
        clauses = [clause for clause in verdict.include if clause.label == label]
        bounds = [bound for bound in verdict.exclude if bound.label == label]
        for place, detection in enumerate(objects):
            named = (c.colors[c.objects.index(place)] for c in clauses if c.colors and place in c.objects)
            color = detection.color or next(named, "")
            yield {
                "text": f"{color} {label} {detection.score:.2f}".lstrip(),
                "box": list(detection.box),
                "ok": _matches(place, clauses, bounds, exact),
            }


def _matches(place: int, clauses: list[IncludeResult], bounds: list[ExcludeResult], exact: bool) -> bool | None:
    """Return whether the `place`-th best object of a class matches the prompt; None if the prompt does not mention it.

    An object assigned to a clause matches if it has the color and position of such a clause, or if these were not
    evaluated. A surplus object does not match if it exceeds the allowed number; else the result is None.
    """
    used = [clause for clause in clauses if place in clause.objects]
    if used:
        return any(_is_right(place, clause) for clause in used)
    too_many = any(place >= bound.bound - 1 for bound in bounds) or (exact and bool(clauses))
    return False if too_many else None


def _is_right(place: int, clause: IncludeResult) -> bool:
    index = clause.objects.index(place)
    if clause.colors is not None and clause.colors[index] != clause.color:
        return False
    relation = clause.relation
    return relation is None or not relation.right or relation.right[index]

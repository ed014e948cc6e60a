"""What a GenEval reward says of a sample: the clauses in words, and marks on the image. Pure; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dgpo_core.types import Prompt
from dgpo_geneval.evaluator import Verdict
from dgpo_geneval.variants import VARIANTS, ExcludeResult, IncludeResult, VariantName

__all__ = ["diagnose"]


def diagnose(prompt: Prompt, variant: VariantName, verdict: Verdict | None, reason: str | None) -> dict[str, Any]:
    """JSON-able account of one sample.

    `reason`, `clauses` and `marks` as in `dgpo_schemas.diagnostics` (so `reason` is None if the sample was scored);
    `correct`, `value` (both None if it was not), `tag`; `wrong`: what is wrong, clause by clause, empty if nothing is;
    `details`: each clause's result for programs.
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
    """One line a clause: what was asked for, and what was found."""
    for clause in verdict.include:
        asked = f"{clause.color or ''} {clause.label}"
        count = f"{len(clause.objects)} of {clause.found}" if clause.shared else str(clause.found)
        found = [count, *(clause.colors or ())]
        if clause.position is not None:
            relation, target = clause.position
            other = verdict.include[target].label
            asked += f" {relation} the {other}"
            if clause.relation is not None:
                found += (
                    clause.relation.seen if clause.relation.target_matched else [f"but the {other} is not as asked"]
                )
        number = f"{'exactly' if exact else 'at least'} {clause.required}"
        yield {"text": f"{' '.join(asked.split())}, {number}: found {', '.join(found)}", "ok": clause.satisfied}
    for bound in verdict.exclude:
        asked = f"no {bound.label}" if bound.bound == 1 else f"at most {bound.bound - 1} {bound.label}"
        yield {"text": f"{asked}: found {bound.found}", "ok": bound.satisfied}


def _marks(verdict: Verdict, exact: bool) -> Iterator[dict[str, Any]]:
    """A box for everything that was seen, whether a clause speaks of it or not."""
    for label, objects in verdict.kept.items():
        clauses = [clause for clause in verdict.include if clause.label == label]
        bounds = [bound for bound in verdict.exclude if bound.label == label]
        for place, detection in enumerate(objects):
            named = (c.colors[c.objects.index(place)] for c in clauses if c.colors and place in c.objects)
            color = detection.color or next(named, "")
            yield {
                "text": f"{color} {label} {detection.score:.2f}".lstrip(),
                "box": list(detection.box),
                "ok": _as_asked(place, clauses, bounds, exact),
            }


def _as_asked(place: int, clauses: list[IncludeResult], bounds: list[ExcludeResult], exact: bool) -> bool | None:
    """Whether the `place`-th best object of a class is as asked; None if the prompt does not care.

    An object that a clause uses is right if it has the color and the place of one such clause (or these were not
    reached); a surplus one is wrong if it is one too many, else nobody asked for it.
    """
    used = [clause for clause in clauses if place in clause.objects]
    if used:
        return any(_is_right(place, clause) for clause in used)
    too_many = any(place >= bound.bound - 1 for bound in bounds) or (exact and bool(clauses))
    return False if too_many else None


def _is_right(place: int, clause: IncludeResult) -> bool:
    mine = clause.objects.index(place)
    if clause.colors is not None and clause.colors[mine] != clause.color:
        return False
    relation = clause.relation
    return relation is None or not relation.right or relation.right[mine]

"""Whether two worlds order methods alike: the contrasts of two experiments with the same variants, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.decisions import Decisions
from experiments.statistics.contrasts import Contrast
from experiments.statistics.summaries import Budget

__all__ = ["Pair", "confirmed", "pairs", "verdict"]

LEVEL = 0.05
"""A contrast is settled if the sign-flip test after Holm's correction rejects no difference at this level."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same contrast in the standard and in the fast world."""

    standard: Contrast
    fast: Contrast

    @property
    def outcome(self) -> str:
        """`same`: settled in both, with the same sign; `opposite`: with opposite ones; `standard only`,
        `fast only` or `open` by where it is settled."""
        settled = [one.corrected <= LEVEL for one in (self.standard, self.fast)]
        if all(settled):
            return "same" if self.standard.difference.value * self.fast.difference.value > 0 else "opposite"
        return "standard only" if settled[0] else "fast only" if settled[1] else "open"


def pairs(standard: Decisions, fast: Decisions, margin: float, budget: Budget = "samples") -> list[Pair]:
    """Return the contrasts to the baseline that both have."""
    others = {one.name: one for one in fast.contrasts(budget, margin)}
    return [Pair(one, others[one.name]) for one in standard.contrasts(budget, margin) if one.name in others]


def confirmed(found: Sequence[Pair]) -> list[str]:
    """Return the variants that make a positive difference in both worlds, the largest in the standard one first."""
    both = [
        pair.standard
        for pair in found
        if all(one.verdict == "difference" and one.difference.value > 0 for one in (pair.standard, pair.fast))
    ]
    return [one.name for one in sorted(both, key=lambda one: -one.difference.value)]


def verdict(found: Sequence[Pair]) -> str:
    """Apply the rule: alike if at least three contrasts are settled in the standard world, each of them is settled with
    the same sign in the fast world, and none is opposite."""
    settled = [pair for pair in found if pair.outcome in ("same", "opposite", "standard only")]
    same = [pair for pair in settled if pair.outcome == "same"]
    counted = f"{len(same)} of the {len(settled)} contrasts that are settled in the standard miniature"
    if any(pair.outcome == "opposite" for pair in settled):
        names = ", ".join(f"`{pair.standard.name}`" for pair in settled if pair.outcome == "opposite")
        return f"The fast miniature does not order the methods alike: {names} has the opposite sign."
    if len(settled) < 3:
        return f"Undecided: only {len(settled)} contrasts are settled in the standard miniature, the rule asks for 3."
    if len(same) < len(settled):
        return f"Undecided: {counted} are settled in the fast one too, all of these with the same sign."
    return f"The fast miniature orders the methods alike: {counted} are settled there too, with the same signs."

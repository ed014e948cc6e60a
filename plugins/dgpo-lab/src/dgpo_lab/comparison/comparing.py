"""Compare runs score by score: the first run with each other one, prompt by prompt where the prompts are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dgpo_lab.ablation.statistics import two_way_interval
from dgpo_lab.comparison.reading import Entry, Name, Score

__all__ = ["Difference", "Row", "difference", "rows"]

LEVEL = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Difference:
    """A score minus that of the first run. low, high: 95 % interval of the paired difference; None if the scores cannot
    be paired. other: what differs, in one word, such as prompts or judge; None if it is not known."""

    value: float
    low: float | None = None
    high: float | None = None
    other: str | None = None

    @property
    def paired(self) -> bool:
        """Whether the difference is over the same prompts."""
        return self.low is not None


@dataclass(frozen=True, slots=True)
class Row:
    """One score of one run."""

    suite: str
    name: str
    run: str
    score: Score | None
    difference: Difference | None


def rows(entries: Sequence[Entry]) -> Iterator[Row]:
    """Yield the rows, score by score and run by run; a run without the score has an empty row."""
    names: dict[Name, None] = dict.fromkeys(name for entry in entries for name in entry.scores)
    suites = dict.fromkeys(suite for suite, _ in names)
    for suite, name in sorted(names, key=lambda one: list(suites).index(one[0])):
        base = entries[0].scores.get((suite, name))
        for place, entry in enumerate(entries):
            score = entry.scores.get((suite, name))
            compared = difference(score, base) if place and score is not None and base is not None else None
            yield Row(suite, name, entry.label, score, compared)


def difference(score: Score, base: Score) -> Difference | None:
    """Return the difference of two scores, paired over prompts if they measure the same; None without values."""
    if score.value is None or base.value is None:
        return None
    value = score.value - base.value
    if score.identity is None or base.identity is None:
        return Difference(value)
    for name in dict.fromkeys([*score.identity, *base.identity]):
        if name not in score.identity or name not in base.identity:
            return Difference(value)
        if score.identity[name] != base.identity[name]:
            return Difference(value, other=name)
    if score.resampled is not None and base.resampled is not None and len(score.resampled) == len(base.resampled):
        drawn = score.resampled - base.resampled
        known = drawn[~np.isnan(drawn)]
        low, high = np.quantile(known, LEVEL) if len(known) else (None, None)
        return Difference(value, None if low is None else float(low), None if high is None else float(high))
    if score.per_prompt is not None and base.per_prompt is not None:
        differences = score.per_prompt - base.per_prompt
        if np.isnan(differences).all():
            return Difference(value)
        interval = two_way_interval(differences[None], score.tasks)
        return Difference(value, interval.low, interval.high)
    return Difference(value)

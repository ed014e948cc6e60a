"""Ratios of two sides that took turns, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binom

from benchmarks.peers.turns import MERGED, OURS, SIDES, take_turns
from benchmarks.peers.work import Work
from dgpo_core.errors import UserError

__all__ = ["Comparison", "Ratio", "compare", "median_interval"]

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """Our seconds over theirs: the median over turns; low, high: its interval, at this level."""

    median: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Comparison:
    """Of one work. seconds, rollout: medians of each side's iterations; passes, rows: of each side's last iteration,
    by kind; inputs: of each side's network; ratios: of each side of ours to each peer, by phase ("iteration",
    "rollout", "optimize")."""

    work: Work
    turns: int
    seconds: dict[str, float]
    rollout: dict[str, float]
    passes: dict[str, dict[str, int]]
    rows: dict[str, dict[str, int]]
    inputs: dict[str, list[str]]
    ratios: dict[str, dict[str, dict[str, Ratio]]]


def median_interval(values: Sequence[float], level: float = LEVEL) -> Ratio:
    """Median and the narrowest interval of order statistics that covers it with at least `level`, whatever the
    distribution: [x_k, x_(n+1-k)] covers with 1 - 2 P(Binomial(n, 1/2) < k) (David and Nagaraja, Order Statistics,
    7.1). With fewer than six values none does; then it is the widest, with its own level."""
    ordered, n = sorted(values), len(values)
    k = 1
    while 2 * (k + 1) <= n + 1 and 1 - 2 * binom.cdf(k, n, 0.5) >= level:
        k += 1
    covered = max(0.0, 1 - 2 * float(binom.cdf(k - 1, n, 0.5)))
    return Ratio(statistics.median(ordered), ordered[k - 1], ordered[n - k], covered)


def compare(work: Work, paths: Mapping[str, Path], turns: int) -> Comparison:
    """Take turns with the peers of `paths`. Raises UserError if one does not run, or gets other inputs than ours."""
    found = take_turns(work, {OURS: None, MERGED: None, **paths}, turns * work.repeats)
    inputs = {key: [*found[key][-1]["inputs"], found[key][-1]["weights"]] for key in found}
    for key in paths:
        if inputs[key] != inputs[OURS]:
            raise UserError(
                f"{SIDES[key].name} does other work than dgpo: {', '.join(inputs[key])}; ours: "
                f"{', '.join(inputs[OURS])}"
            )
    return Comparison(
        work=work,
        turns=turns * work.repeats,
        seconds={key: statistics.median(one["seconds"] for one in rows) for key, rows in found.items()},
        rollout={key: statistics.median(one["rollout"] for one in rows) for key, rows in found.items()},
        passes={key: dict(rows[-1]["passes"]) for key, rows in found.items()},
        rows={key: dict(rows[-1]["rows"]) for key, rows in found.items()},
        inputs=inputs,
        ratios={own: {key: _ratios(found[own], found[key]) for key in paths} for own in (OURS, MERGED)},
    )


def _ratios(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Ratio]:
    parts: dict[str, Callable[[dict[str, Any]], float]] = {
        "iteration": lambda one: one["seconds"],
        "rollout": lambda one: one["rollout"],
        "optimize": lambda one: one["seconds"] - one["rollout"],
    }
    return {
        name: median_interval([part(a) / part(b) for a, b in zip(ours, theirs, strict=True)])
        for name, part in parts.items()
    }

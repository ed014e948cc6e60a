"""Which members of a group are compared, and how comparisons become values. float64, without torch.

Everything is decided by the members' keys, so that it does not depend on their order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dgpo_core.types import SampleKey

__all__ = ["bradley_terry", "kendall_distance", "order_of", "pairs_of", "rank_values", "win_rates", "with_ties"]

PRIOR = 0.1
"""Weight of a prior in comparisons: each member also drew so often against a member of strength 0. Keeps strengths
finite where a member won everything."""
STEPS = 100
"""Most Newton steps; a handful is needed."""


def order_of(keys: Sequence[SampleKey], number: int = 0) -> list[int]:
    """Return the indices of the members in an order that their keys determine; `number` selects one of many."""
    return sorted(range(len(keys)), key=lambda i: (_hash(keys[i], number), json.dumps(keys[i])))


def _hash(key: SampleKey, number: int) -> str:
    return hashlib.sha256(json.dumps([number, *key]).encode()).hexdigest()


def pairs_of(keys: Sequence[SampleKey], opponents: int | None) -> list[tuple[int, int]]:
    """Return the pairs of members to compare: all, or those of a ring in which each meets `opponents` (even) others.

    The first of a pair is the one that comes first in `order_of(keys)`.
    """
    order, count = order_of(keys), len(keys)
    if opponents is None or opponents >= count - 1:
        return [(order[i], order[j]) for i in range(count) for j in range(i + 1, count)]
    ring = [(i, (i + step) % count) for step in range(1, opponents // 2 + 1) for i in range(count)]
    return [(order[min(pair)], order[max(pair)]) for pair in ring]


def with_ties(preference: float, margin: float) -> float:
    """Return a preference in [0, 1], or 1/2 if it is that close to it."""
    return 0.5 if abs(preference - 0.5) <= margin else preference


def win_rates(count: int, preferences: Mapping[tuple[int, int], float]) -> list[float]:
    """Return each member's mean preference over its comparisons, nan without any.

    preferences: (i, j) -> how far i is preferred to j, in [0, 1].
    """
    won: list[list[float]] = [[] for _ in range(count)]
    for (i, j), p in preferences.items():
        won[i].append(p)
        won[j].append(1 - p)
    return [math.fsum(of_member) / len(of_member) if of_member else math.nan for of_member in won]


def bradley_terry(count: int, preferences: Mapping[tuple[int, int], float]) -> list[float]:
    """Return each member's expected win rate against the others under the Bradley-Terry model, nan without comparisons.

    The strengths s maximize the sum of p log σ(s_i - s_j) + (1 - p) log σ(s_j - s_i) over the comparisons, plus
    PRIOR / 2 (log σ(s_i) + log σ(-s_i)) for each member, a draw against strength 0. This is concave, and Newton's
    method finds the maximum. The value of i is the mean of σ(s_i - s_j) over the other members.
    """
    known = sorted({member for pair in preferences for member in pair})
    place = {member: row for row, member in enumerate(known)}
    pairs = sorted((place[i], place[j], p) for (i, j), p in preferences.items())
    s = np.zeros(len(known))
    for _ in range(STEPS):
        gradient, hessian = _derivatives(s, pairs)
        step = np.linalg.solve(hessian, gradient)
        s = s + step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max(initial=0.0))))
        if float(np.abs(step).max(initial=0.0)) < 1e-13:
            break
    values = [math.nan] * count
    for member in known:  # two at least
        row = place[member]
        others = [_sigmoid(float(s[row] - s[other])) for other in range(len(known)) if other != row]
        values[member] = math.fsum(others) / len(others)
    return values


def _derivatives(s: np.ndarray, pairs: Sequence[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the objective, and its negative Hessian."""
    prior = np.array([_sigmoid(float(x)) for x in s])
    gradient, hessian = PRIOR * (0.5 - prior), np.diag(PRIOR * prior * (1 - prior))
    for i, j, p in pairs:
        q = _sigmoid(float(s[i] - s[j]))
        gradient[i] += p - q
        gradient[j] -= p - q
        hessian[[i, j], [i, j]] += q * (1 - q)
        hessian[[i, j], [j, i]] -= q * (1 - q)
    return gradient, hessian


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# -- lists ----------------------------------------------------------------------------------------------------------


def rank_values(count: int, rankings: Sequence[Sequence[int]]) -> list[float]:
    """Return (count - 1 - mean rank) / (count - 1) for each member: 1 if it is always first, 0 if always last.

    rankings: permutations of the members, best first.
    """
    ranks = [[ranking.index(member) for ranking in rankings] for member in range(count)]
    return [1 - math.fsum(of_member) / len(of_member) / (count - 1) for of_member in ranks]


def kendall_distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of pairs that two rankings order differently, in [0, 1]."""
    place = {member: rank for rank, member in enumerate(other)}
    count = len(one)
    wrong = sum(place[one[i]] > place[one[j]] for i in range(count) for j in range(i + 1, count))
    return wrong / (count * (count - 1) / 2)

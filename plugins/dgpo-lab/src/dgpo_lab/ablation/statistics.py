"""Statistics of an ablation: few seeds, many prompts, variants compared seed by seed. Pure: arrays in, numbers out.

Legend: S seeds, P held-out prompts, B bootstrap resamples.

What varies. A score of a variant is a mean over S training seeds and over P held-out prompts. Both are samples: another
seed trains another model, other prompts ask for other things. Seeds are few (3 to 10), prompts are many and the same
for every seed and variant, so the two are treated differently:

* Over seeds, Student's t. A percentile bootstrap of three values has ten distinct means and an interval that covers far
  less than it says (about 75 % for S = 3); t with S - 1 degrees of freedom is exact for normal seed effects and close
  to it otherwise.
* Over prompts, the bootstrap. Scores of prompts are often 0 or 1, their number is large, and the score is a mean of
  tasks' means: resampling within tasks respects all of it without a formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval", "SignFlip", "holm", "pairs_for", "sign_flip_test", "t_interval", "task_mean", "two_way_interval",
]  # fmt: skip

Array = NDArray[np.float64]
RESAMPLES = 10_000
EXACT_UP_TO = 18
"""Seeds up to which every sign pattern is enumerated: 2^18 of them take scipy a second."""
FLIPS = 100_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; `over` says what was taken to vary: "seeds", "seeds and prompts",
    "prompts"; low and high are None where nothing can be said (one seed)."""

    value: float
    low: float | None
    high: float | None
    n: int
    over: str


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of one value a seed with Student's t interval: another training seed, the same held-out prompts."""
    found = np.asarray(values, dtype=np.float64)
    n, mean = len(found), float(found.mean())
    if n < 2:
        return Interval(mean, None, None, n, "seeds")
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(found.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "seeds")


def task_mean(values: Array, tasks: Sequence[str]) -> Array:
    """Unweighted mean [S] of the tasks' means over prompts; values [S, P], nan where missing, task of each prompt [P].

    A task of which a seed has no value does not count for that seed, as in an evaluation.
    """
    return _mean(np.stack([_mean(values[:, _members(tasks, task)], 1) for task in dict.fromkeys(tasks)]), 0)


def two_way_interval(values: Array, tasks: Sequence[str], *, seed: int = 0, level: float = 0.95) -> Interval:
    """Score of a variant with an interval over training seeds and held-out prompts together.

    values [S, P]: the score of each prompt for each seed, nan where missing; tasks [P]. Paired differences are given in
    the same form: the values of one variant minus those of the other. The value is the mean over seeds of the
    unweighted mean of tasks' means. Each of B resamples

    * draws prompts with replacement within each task, the same ones for every seed (seeds share their prompts, so that
      what a prompt contributes to all of them does not average out), and
    * adds the seeds' part, s / sqrt(S) * T, s the standard deviation of the seeds' scores and T drawn from Student's t
      with S - 1 degrees of freedom. (Resampling three seeds would understate their spread, see above.)

    The percentiles of these are the interval. Where prompts do not vary it is the t interval, where seeds do not vary
    the bootstrap over prompts. The scatter of a prompt within a seed enters both parts, so the interval is somewhat too
    wide rather than too narrow, as with Owen's pigeonhole bootstrap (2007, doi 10.1214/07-AOAS122). With one seed it is
    over prompts only, and says so. `seed` keys the resampling.
    """
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    scores = task_mean(values, tasks)
    generator = np.random.default_rng(seed)
    parts = []
    for task in dict.fromkeys(tasks):
        members = values[:, _members(tasks, task)]
        size = members.shape[1]
        picks = generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)  # [B, p]
        known = ~np.isnan(members)
        sums, counts = picks @ np.where(known, members, 0.0).T, picks @ known.T.astype(np.float64)  # [B, S]
        parts.append(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
    resampled = _mean(_mean(np.stack(parts), 0), 1)  # [tasks, B, S] to [B]
    over = "prompts"
    if count > 1:
        over = "seeds and prompts"
        resampled = resampled + scores.std(ddof=1) / math.sqrt(count) * generator.standard_t(count - 1, RESAMPLES)
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(_mean(scores, 0)), float(low), float(high), count, over)


def _members(tasks: Sequence[str], task: str) -> NDArray[np.bool_]:
    return np.array([one == task for one in tasks])


def _mean(values: Array, axis: int) -> Array:
    """Mean over an axis of what is there, nan where nothing is; numpy's nanmean would warn of that."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Two-sided p of a paired sign-flip test; `smallest` is the smallest that so many seeds can give."""

    p: float
    smallest: float
    n: int
    exact: bool


def sign_flip_test(differences: Sequence[float]) -> SignFlip:
    """Paired permutation test of "the two variants do not differ": one difference a seed.

    If they do not, each seed's difference may as well have the other sign, so all 2^n sign patterns are as likely; p is
    the share of them whose mean is at least as far from 0 as the one found (Fisher 1935). No distribution is assumed,
    but few seeds cannot give a small p: the smallest is 2 / 2^n, 0.25 for 3 seeds and 0.0625 for 5; six are needed to
    get below 0.05. Up to 18 seeds all patterns are counted, beyond that 100,000 drawn ones and the one found
    (scipy.stats.permutation_test).
    Raises ValueError for no difference at all.
    """
    found = np.asarray(differences, dtype=np.float64)
    n = len(found)
    if not n:
        raise ValueError("there is no difference to test")
    if n == 1:
        return SignFlip(1.0, 1.0, 1, True)
    from scipy.stats import permutation_test

    exact = n <= EXACT_UP_TO
    done = permutation_test(
        (found,), np.sum, permutation_type="samples", vectorized=True, batch=4096,
        n_resamples=np.inf if exact else FLIPS, rng=np.random.default_rng(n),
    )  # fmt: skip
    return SignFlip(float(done.pvalue), min(1.0, 2.0 ** (1 - n)) if exact else 2 / (FLIPS + 1), n, exact)


def pairs_for(level: float, comparisons: int = 1) -> int:
    """The fewest paired seeds whose exact sign-flip test can give a p below `level`, in (0, 1), after Holm's correction
    of the smallest of so many `comparisons`: the smallest n with comparisons 2 / 2^n < level; 6 for 0.05 and one."""
    n = 1
    while min(1.0, comparisons * 2.0 ** (1 - n)) >= level:
        n += 1
    return n


def holm(ps: Sequence[float]) -> list[float]:
    """p values of several comparisons, corrected so that the chance of any false one stays below the level (Holm 1979).

    The k-th smallest of m (from 0) is multiplied by m - k and made at least as large as the one before it.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = running
    return corrected

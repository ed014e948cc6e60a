"""Statistics of an ablation: few seeds, many prompts, variants compared seed by seed. Pure functions of arrays.

Legend: S seeds, P held-out prompts, B bootstrap resamples.

Sources of variation. A variant's score is a mean over S training seeds and P held-out prompts, both random samples.
Seeds are few (3 to 10); prompts are many and the same for every seed and variant, so the two are treated differently:

* Over seeds: Student's t. A percentile bootstrap of three values has ten distinct means, and its interval covers far
  less than 95 % (about 75 % for S = 3); t with S - 1 degrees of freedom is exact for normal seed effects and
  a good approximation otherwise.
* Over prompts: the bootstrap. Scores of prompts are often 0 or 1, their number is large, and the score is a mean of
  task means; resampling within tasks handles all of this without a formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval", "SignFlip", "holm", "pairs_for", "sign_flip_test", "t_interval", "task_mean", "two_way_interval",
]  # fmt: skip

Array = NDArray[np.float64]
RESAMPLES = 10_000
EXACT_UP_TO = 18
"""Largest number of seeds whose sign patterns are all enumerated; 2^18 patterns take about a second."""
FLIPS = 100_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval. over: the sources of variation: "seeds", "seeds and prompts" or "prompts";
    low and high are None if there is no interval (one seed)."""

    value: float
    low: float | None
    high: float | None
    n: int
    over: str


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of one value per seed, with Student's t interval for the same held-out prompts."""
    found = np.asarray(values, dtype=np.float64)
    n, mean = len(found), float(found.mean())
    if n < 2:
        return Interval(mean, None, None, n, "seeds")
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(found.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "seeds")


def task_mean(values: Array, tasks: Sequence[str]) -> Array:
    """Return the unweighted mean [S] of the task means over prompts.

    values [S, P], nan where missing; tasks [P]. A task without values of a seed is ignored for that seed, as in an
    evaluation.
    """
    return _mean(np.stack([_mean(values[:, _members(tasks, task)], 1) for task in dict.fromkeys(tasks)]), 0)


def two_way_interval(values: Array, tasks: Sequence[str], *, seed: int = 0, level: float = 0.95) -> Interval:
    """Return a variant's score with an interval over training seeds and held-out prompts.

    values [S, P]: the score of each prompt for each seed, nan where missing; tasks [P]. For paired differences, pass
    the values of one variant minus those of the other. The estimate is the mean over seeds of the unweighted mean of
    the task means. Each of B resamples

    * draws prompts with replacement within each task, the same prompts for every seed (seeds share their prompts, so
      that the effect of a prompt does not average out over seeds), and
    * adds s / sqrt(S) * T for the seeds, where s is the standard deviation of the seeds' scores and T is drawn from
      Student's t with S - 1 degrees of freedom. (Resampling three seeds would underestimate their variance, see above.)

    The interval consists of percentiles of the resamples. It equals the t interval if prompts do not vary, and the
    bootstrap over prompts if seeds do not vary. The variance of a prompt within a seed enters both terms, so the
    interval is conservative, as Owen's pigeonhole bootstrap (2007, doi 10.1214/07-AOAS122). With one seed it is over
    prompts only, and `over` is "prompts". seed: seed of the resampling.
    """
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    scores = task_mean(values, tasks)
    chosen = [_members(tasks, task) for task in dict.fromkeys(tasks)]
    resamples, state = _resamples(tuple(int(members.sum()) for members in chosen), seed)
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    parts = []
    for place, picks in zip(chosen, resamples, strict=True):
        members = values[:, place]
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


@lru_cache(maxsize=1)
def _resamples(sizes: tuple[int, ...], seed: int) -> tuple[list[Array], Any]:
    """Return how often each of B resamples has each prompt of each task, [B, p], and the generator's state afterwards.

    Drawing them is most of the work, and the variants of an ablation have them in common.
    """
    generator = np.random.default_rng(seed)
    found = [generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64) for size in sizes]
    return found, generator.bit_generator.state


def _members(tasks: Sequence[str], task: str) -> NDArray[np.bool_]:
    return np.array([one == task for one in tasks])


def _mean(values: Array, axis: int) -> Array:
    """Return the mean over an axis without nan values; nan if there are none, without the warning of nanmean."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Two-sided p value of a paired sign-flip test. smallest: the smallest p value possible for n seeds."""

    p: float
    smallest: float
    n: int
    exact: bool


def sign_flip_test(differences: Sequence[float]) -> SignFlip:
    """Test the null hypothesis that two variants do not differ, given one paired difference per seed.

    Under the null hypothesis all 2^n sign patterns are equally likely; p is the fraction of patterns whose mean is at
    least as far from 0 as the observed one (Fisher 1935). The test assumes no distribution, but few seeds cannot give a
    small p: the smallest is 2 / 2^n, 0.25 for 3 seeds and 0.0625 for 5; p < 0.05 requires six. Up to 18 seeds all
    patterns are enumerated, beyond that 100,000 random ones and the observed one (scipy.stats.permutation_test).
    Raises ValueError for an empty sequence.
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
    """Return the smallest number of paired seeds whose exact sign-flip test can give p < level.

    level: in (0, 1); comparisons: number of comparisons of Holm's correction. The result is the smallest n with
    comparisons * 2 / 2^n < level, such as 6 for 0.05 and one comparison."""
    n = 1
    while min(1.0, comparisons * 2.0 ** (1 - n)) >= level:
        n += 1
    return n


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values of several comparisons for the family-wise error rate (Holm 1979).

    The k-th smallest of m (from 0) is multiplied by m - k and raised to at least the previous corrected value.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = running
    return corrected

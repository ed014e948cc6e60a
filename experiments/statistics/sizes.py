"""Numbers of seeds and prompts for an interval of a given half-width, from variances in hand.

Legend: S seeds, P held-out prompts, D [S, P] differences of two variants' scores with the same seed and prompt.

Two-way random effects: D_sp = mean + seed_s + prompt_p + both_sp. The difference of a seed varies by seed_s and the
mean of both_sp over prompts; prompt_p is the same for all seeds and does not average out over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgpo_lab.ablation.statistics import task_mean

__all__ = ["Variances", "half_width", "pooled_sd", "sd_interval", "seeds_for", "seeds_for_sd", "variances"]

Array = NDArray[np.float64]
MOST_SEEDS = 10_000
QUANTILES = 4000
"""Points of the seeds' distribution at which that of both sources is summed: an error of about 1e-4 of the width."""


@dataclass(frozen=True, slots=True)
class Variances:
    """Variance components of a score: of a seed, of one prompt, and of one prompt within one seed."""

    seed: float
    prompt: float
    both: float

    def of_seeds(self, prompts: int) -> float:
        """Return the variance over seeds of the mean over `prompts` fixed prompts."""
        return self.seed + self.both / prompts


def variances(values: Array, tasks: Sequence[str]) -> Variances:
    """Estimate the components from D [S, P], which must be complete, for the mean over the means of tasks [P].

    Analysis of variance (Searle, Casella and McCulloch 1992, 4.3), prompts within tasks: with n prompts of a task, the
    mean squares of its residuals and of its prompts have the expectations both and both + S prompt. Components of tasks
    are summed with the weights of the score, and multiplied by P, so that they are those of an average prompt. The
    estimators are unbiased, except that negative ones are set to 0. Raises ValueError for fewer than two seeds, or
    fewer than two prompts of a task.
    """
    seeds, prompts = values.shape
    names = list(dict.fromkeys(tasks))
    places = [np.array([task == name for task in tasks]) for name in names]
    if seeds < 2 or min(int(place.sum()) for place in places) < 2:
        raise ValueError("variances take at least two seeds, and two prompts of every task")
    both = prompt = 0.0
    for place in places:
        of_task = values[:, place]
        n = of_task.shape[1]
        of_prompts = of_task.mean(0) - of_task.mean()
        residual = of_task - of_task.mean(1, keepdims=True) - of_prompts
        square = float((residual**2).sum()) / ((seeds - 1) * (n - 1))
        between = seeds * float((of_prompts**2).sum()) / (n - 1)
        share = prompts / (n * len(names) ** 2)
        both += share * square
        prompt += share * (between - square) / seeds
    scores = task_mean(values, tasks)
    seed = float(scores.var(ddof=1)) - both / prompts
    return Variances(max(seed, 0.0), max(prompt, 0.0), both)


def half_width(found: Variances, seeds: int, prompts: int, *, fixed: bool, level: float = 0.95) -> float:
    """Return the half-width of the interval of a mean over seeds and prompts; infinite for one seed.

    fixed: the prompts are the population, and the interval is Student's t over seeds. Otherwise both are samples: the
    half-width is the quantile of z sqrt(prompt/P + both/(P S)) + t sqrt((seed + both/P)/S), with t of S - 1 degrees of
    freedom and z standard normal, as in `dgpo_lab.ablation.statistics.two_way_interval`.
    """
    if seeds < 2:
        return math.inf
    from scipy.special import ndtr, stdtrit

    of_seeds = math.sqrt(found.of_seeds(prompts) / seeds)
    quantile = float(stdtrit(seeds - 1, (1 + level) / 2))
    of_prompts = 0.0 if fixed else math.sqrt(found.prompt / prompts + found.both / (prompts * seeds))
    if of_prompts == 0:
        return quantile * of_seeds
    t = of_seeds * stdtrit(seeds - 1, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    low, high = 0.0, quantile * of_seeds + 10 * of_prompts
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        inside = float(ndtr((middle - t) / of_prompts).mean())
        low, high = (middle, high) if inside < (1 + level) / 2 else (low, middle)
    return high


def seeds_for(found: Variances, prompts: int, width: float, *, fixed: bool, level: float = 0.95) -> int | None:
    """Return the smallest number of seeds with a half-width of at most `width`; None if more seeds never suffice,
    because the prompts alone vary by more."""
    return _smallest(lambda seeds: half_width(found, seeds, prompts, fixed=fixed, level=level) <= width)


def seeds_for_sd(sd: float, width: float, *, level: float = 0.95, assurance: float | None = None) -> int | None:
    """Return the smallest number of seeds whose t interval has a half-width of at most `width`, for differences with a
    standard deviation `sd`.

    assurance: the probability with which the interval of a future experiment, whose standard deviation is estimated
    anew, is that narrow (Kupper and Hafner 1989): s^2 is then at most its quantile sd^2 chi^2 / (S - 1). None: with the
    estimate equal to `sd`.
    """
    from scipy.special import chdtri, stdtrit

    def narrow(seeds: int) -> bool:
        factor = 1.0 if assurance is None else math.sqrt(float(chdtri(seeds - 1, 1 - assurance)) / (seeds - 1))
        return float(stdtrit(seeds - 1, (1 + level) / 2)) * factor * sd / math.sqrt(seeds) <= width

    return _smallest(narrow)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 2 to MOST_SEEDS that is enough, given that larger ones are too."""
    high = 2
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = high // 2  # not enough, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def pooled_sd(samples: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation within samples, pooled over them, and its degrees of freedom.

    Raises ValueError if no sample has two values.
    """
    freedom = sum(len(sample) - 1 for sample in samples if len(sample) > 1)
    if not freedom:
        raise ValueError("a standard deviation takes a sample of at least two values")
    squares = sum(float(np.square(np.asarray(s) - np.mean(s)).sum()) for s in samples if len(s) > 1)
    return math.sqrt(squares / freedom), freedom


def sd_interval(sd: float, freedom: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a standard deviation that was estimated with these degrees of freedom, for normal
    values: sd sqrt(freedom / chi^2)."""
    from scipy.special import chdtri

    tail = (1 - level) / 2
    low, high = (sd * math.sqrt(freedom / float(chdtri(freedom, q))) for q in (tail, 1 - tail))
    return low, high

"""Signal to noise of a random vector from a few redraws, and the ratio of two averages over prompts.

The redraws g_1, ..., g_R are independent with mean m and covariance S. Signal is |m|^2, noise is tr S, the variance.
|mean of the redraws|^2 exceeds |m|^2 by tr S / R on average, so that is subtracted: what remains is the mean of
g_r . g_s over all pairs r != s, which is |m|^2 on average whatever the distribution, and can be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dgpo_lab.ablation.statistics import Interval

__all__ = ["Moments", "SignalNoise", "ratio_of_means"]

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class SignalNoise:
    """Unbiased estimates of |mean|^2, which can be negative, and of the variance tr S."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """Signal to noise; 0 without noise, as of redraws that are all 0."""
        return self.signal / self.noise if self.noise > 0 else 0.0


class Moments:
    """Sums over redraws of a vector [D], in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares = 0.0

    def add(self, vector: Tensor) -> None:
        """Add a redraw [D]."""
        vector = vector.double()
        self.count += 1
        self._sum = vector.clone() if self._sum is None else self._sum.add_(vector)
        self._squares += float(vector.square().sum())

    def estimate(self) -> SignalNoise:
        """Return the estimates from at least two redraws."""
        assert self._sum is not None
        assert self.count >= 2, "a variance takes two redraws"
        of_sum = float(self._sum.square().sum())
        signal = (of_sum - self._squares) / (self.count * (self.count - 1))
        return SignalNoise(signal, (self._squares - of_sum / self.count) / (self.count - 1))


def ratio_of_means(own: Sequence[float], others: Sequence[float], *, seed: int = 0, level: float = 0.95) -> Interval:
    """Return mean(own) / mean(others), both with one value per prompt, with the percentile bootstrap over prompts.

    A resample draws the same prompts for both. Where the mean of its others is not positive, its ratio is not bounded,
    and counts as beyond either end; there is no interval if an end is then infinite.
    """
    pairs = np.stack([np.asarray(own, dtype=np.float64), np.asarray(others, dtype=np.float64)])
    count = pairs.shape[1]
    value = float(pairs[0].sum() / pairs[1].sum())
    if count < 2:
        return Interval(value, None, None, count, "prompts")
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    numerators, denominators = pairs @ picks.T.astype(np.float64)
    bounded = denominators > 0
    ratios = numerators / np.where(bounded, denominators, 1.0)
    # Without interpolation, which is not defined beside an infinite value.
    low = np.quantile(np.where(bounded, ratios, -np.inf), (1 - level) / 2, method="inverted_cdf")
    high = np.quantile(np.where(bounded, ratios, np.inf), (1 + level) / 2, method="inverted_cdf")
    if not np.isfinite([low, high]).all():
        return Interval(value, None, None, count, "prompts")
    return Interval(value, float(low), float(high), count, "prompts")

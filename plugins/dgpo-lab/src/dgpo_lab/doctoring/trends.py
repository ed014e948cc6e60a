"""Windows and trends of a logged metric, based on medians and ranks so that they are robust to outliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgpo_lab.doctoring.findings import figure

__all__ = ["CLEAR", "MIN_ITERATIONS", "MIN_TREND", "Series", "Stretch"]

MIN_ITERATIONS = 9
"""Minimum iterations to compare thirds: a third then has three values, the fewest whose median is not an extreme."""
MIN_TREND = 24
"""Minimum iterations to report that a reward does not rise. The rewards of the miniatures, which rise by about 0.01 per
iteration, pass the trend test permanently after 4 to 18 iterations."""
CLEAR = 2.0
"""Standard errors from which a trend counts as significant (about 2.5 % of flat series exceed it upwards)."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive iterations `begin` to `end` of a metric, with at least one known value."""

    values: NDArray[np.float64]
    begin: int
    end: int
    source: str

    @property
    def median(self) -> float:
        """The median of the values."""
        return float(np.median(self.values))

    @property
    def where(self) -> str:
        """The source of the values: metrics.jsonl, iterations 9 to 12."""
        span = f"iteration {self.begin}" if self.begin == self.end else f"iterations {self.begin} to {self.end}"
        return f"{self.source}, {span}"

    def brief(self, label: str, show: Callable[[float], str] = figure) -> str:
        """Format the label and the median, without the source."""
        return f"{label} {show(self.median)}"

    def evidence(self, label: str, show: Callable[[float], str] = figure) -> str:
        """Format a line of evidence: LABEL 0.47 (metrics.jsonl, iterations 9 to 12)."""
        return f"{label} {show(self.median)} ({self.where})"


@dataclass(frozen=True)
class Series:
    """A metric: one value per logged iteration, nan where it is missing."""

    iterations: NDArray[np.float64]
    values: NDArray[np.float64]
    source: str = "metrics.jsonl"

    @property
    def known(self) -> int:
        """The number of iterations that have a value."""
        return int(np.isfinite(self.values).sum())

    @property
    def enough(self) -> bool:
        """Whether thirds can be compared."""
        return self.known >= MIN_ITERATIONS

    @property
    def early(self) -> Stretch:
        """The first third. The series must have at least one value."""
        return self._stretch(0, self._third)

    @property
    def middle(self) -> Stretch:
        """The middle third."""
        return self._stretch(self._third, len(self.values) - self._third)

    @property
    def late(self) -> Stretch:
        """The last third."""
        return self._stretch(len(self.values) - self._third, len(self.values))

    @property
    def whole(self) -> Stretch:
        """The whole series."""
        return self._stretch(0, len(self.values))

    @property
    def _third(self) -> int:
        return max(1, len(self.values) // 3)

    def _stretch(self, first: int, stop: int) -> Stretch:
        """Return the stretch [first, stop), or the whole series if that has no values."""
        values = self.values[first:stop]
        values = values[np.isfinite(values)]
        if not len(values):
            first, stop = 0, len(self.values)
            values = self.values[np.isfinite(self.values)]
        return Stretch(values, int(self.iterations[first]), int(self.iterations[stop - 1]), self.source)

    def half(self) -> Series:
        """Return the second half of the series."""
        middle = len(self.values) // 2
        return Series(self.iterations[middle:], self.values[middle:], self.source)

    def map(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Series:
        """Apply a function to the values."""
        return Series(self.iterations, function(self.values), self.source)

    def over(self, other: Series) -> Series:
        """Return the ratio to another series; nan where that is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(other.values != 0, self.values / other.values, np.nan)
        return Series(self.iterations, ratio, self.source)

    def trend(self) -> float:
        """Return the z score of the Mann-Kendall trend test.

        This is the number of rising pairs minus the number of falling pairs, in standard errors; 0 for a constant. The
        test assumes no distribution and is robust to outliers.
        """
        values = self.values[np.isfinite(self.values)]
        n = len(values)
        if n < 3:
            return 0.0
        score = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)].sum())
        return score / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

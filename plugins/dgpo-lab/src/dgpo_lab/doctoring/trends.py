"""Windows and trends of a logged number. Medians and ranks, so that one odd iteration decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgpo_lab.doctoring.findings import figure

__all__ = ["CLEAR", "MIN_ITERATIONS", "MIN_TREND", "Series", "Stretch"]

MIN_ITERATIONS = 9
"""Iterations from which thirds are compared: a third is then three, the fewest whose median is no extreme."""
MIN_TREND = 24
"""Iterations from which a reward that does not rise means something: those of the miniatures, which rise by about 0.01
an iteration, clear the trend test for good within 4 to 18."""
CLEAR = 2.0
"""Standard errors from which a trend is not taken for chance (about 2.5 % of flat series pass it upwards)."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive iterations of a number: `begin` to `end`, and the known values in them (one at least)."""

    values: NDArray[np.float64]
    begin: int
    end: int
    source: str

    @property
    def median(self) -> float:
        """The value in the middle."""
        return float(np.median(self.values))

    @property
    def where(self) -> str:
        """For evidence: metrics.jsonl, iterations 9 to 12."""
        span = f"iteration {self.begin}" if self.begin == self.end else f"iterations {self.begin} to {self.end}"
        return f"{self.source}, {span}"

    def brief(self, what: str, show: Callable[[float], str] = figure) -> str:
        """The same without its place, for what is fine."""
        return f"{what} {show(self.median)}"

    def said(self, what: str, show: Callable[[float], str] = figure) -> str:
        """A line of evidence: what 0.47 (metrics.jsonl, iterations 9 to 12)."""
        return f"{what} {show(self.median)} ({self.where})"


@dataclass(frozen=True)
class Series:
    """A number, one value an iteration of the log, nan where there is none."""

    iterations: NDArray[np.float64]
    values: NDArray[np.float64]
    source: str = "metrics.jsonl"

    @property
    def known(self) -> int:
        """Iterations that have a value."""
        return int(np.isfinite(self.values).sum())

    @property
    def enough(self) -> bool:
        """Whether thirds can be compared."""
        return self.known >= MIN_ITERATIONS

    @property
    def early(self) -> Stretch:
        """The first third. The series must have a value."""
        return self._stretch(0, self._third)

    @property
    def middle(self) -> Stretch:
        """Between the first and the last third."""
        return self._stretch(self._third, len(self.values) - self._third)

    @property
    def late(self) -> Stretch:
        """The last third."""
        return self._stretch(len(self.values) - self._third, len(self.values))

    @property
    def whole(self) -> Stretch:
        """All of it."""
        return self._stretch(0, len(self.values))

    @property
    def _third(self) -> int:
        return max(1, len(self.values) // 3)

    def _stretch(self, first: int, stop: int) -> Stretch:
        """Places first to stop; all of the series where none of them has a value."""
        values = self.values[first:stop]
        values = values[np.isfinite(values)]
        if not len(values):
            first, stop = 0, len(self.values)
            values = self.values[np.isfinite(self.values)]
        return Stretch(values, int(self.iterations[first]), int(self.iterations[stop - 1]), self.source)

    def half(self) -> Series:
        """Its second half."""
        middle = len(self.values) // 2
        return Series(self.iterations[middle:], self.values[middle:], self.source)

    def map(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Series:
        """Another number of the same iterations."""
        return Series(self.iterations, function(self.values), self.source)

    def over(self, other: Series) -> Series:
        """The ratio to another one; nan where that is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(other.values != 0, self.values / other.values, np.nan)
        return Series(self.iterations, ratio, self.source)

    def trend(self) -> float:
        """Mann-Kendall's z: how many standard errors the number of pairs that rise exceeds that of pairs that fall; 0
        for a constant. No distribution is assumed and outliers count like any other pair."""
        values = self.values[np.isfinite(self.values)]
        n = len(values)
        if n < 3:
            return 0.0
        score = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)].sum())
        return score / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

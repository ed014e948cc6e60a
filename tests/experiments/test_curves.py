"""Summaries of a learning curve against scipy, closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, interpolate

from experiments.statistics.curves import Crossing, area, crossing, score_at


def curve(seed: int, count: int = 7) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    return [0.0, *np.cumsum(generator.uniform(0.5, 3, count - 1)).tolist()], generator.random(count).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_the_integral_of_the_interpolated_curve(seed: int) -> None:
    places, scores = curve(seed)
    line = interpolate.make_interp_spline(places, scores, k=1)
    for until in (0.3, places[2], (places[3] + places[4]) / 2, places[-1]):
        knots = [x for x in places if x < until]
        expected = integrate.quad(line, 0, until, points=knots[1:] or None, limit=200)[0] / until
        assert area(places, scores, until) == pytest.approx(expected, rel=1e-9)
        assert score_at(places, scores, until) == pytest.approx(float(line(until)), rel=1e-12)


def test_areas_by_hand() -> None:
    assert area([0, 10], [0.4, 0.6], 10) == pytest.approx(0.5)
    assert area([0, 10], [0.4, 0.6], 5) == pytest.approx(0.45)
    assert area([0, 10, 30], [0.4, 0.6, 0.6], 30) == pytest.approx((5 + 12) / 30)
    assert area([2, 4], [0.4, 0.6], 2) == 0.4
    # A curve x^2 in steps of h: the trapezoidal rule exceeds the integral 1/3 by h^2 / 6.
    xs = np.linspace(0, 1, 101)
    assert area(xs.tolist(), (xs**2).tolist(), 1.0) == pytest.approx(1 / 3 + 0.01**2 / 6, rel=1e-12)


def test_a_curve_is_not_continued() -> None:
    for read in (area, score_at):
        with pytest.raises(ValueError, match="covers 0 to 10, not 11"):
            read([0, 10], [0.4, 0.6], 11)
    with pytest.raises(ValueError, match="must increase"):
        area([0, 10, 10], [0.4, 0.6, 0.7], 10)
    with pytest.raises(ValueError, match="one score for each place, got 1 for 2"):
        crossing([0, 10], [0.4], 0.5)


@pytest.mark.parametrize(
    ("scores", "in_a_row", "expected"),
    [
        ([0.1, 0.6, 0.2, 0.6, 0.7, 0.8], 1, Crossing(10, censored=False)),
        ([0.1, 0.6, 0.2, 0.6, 0.7, 0.8], 2, Crossing(30, censored=False)),
        ([0.1, 0.6, 0.2, 0.6, 0.7, 0.8], 3, Crossing(30, censored=False)),
        ([0.1, 0.6, 0.2, 0.6, 0.7, 0.8], 4, Crossing(30, censored=True)),  # it may be confirmed by a fourth
        ([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], 1, Crossing(50, censored=True)),
        ([0.1, 0.6, 0.6, 0.6, 0.6, 0.2], 5, Crossing(50, censored=True)),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 3, Crossing(0, censored=False)),
    ],
)
def test_crossings_by_hand(scores: list[float], in_a_row: int, expected: Crossing) -> None:
    assert crossing([0, 10, 20, 30, 40, 50], scores, 0.5, in_a_row) == expected


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_a_censored_crossing_bounds_that_of_every_continuation(in_a_row: int) -> None:
    """Whatever comes next, the curve crosses at the censored place or later, and one continuation does so there."""
    generator = np.random.default_rng(in_a_row)
    seen = 0
    for _ in range(600):
        scores = generator.random(6).tolist()
        found = crossing(list(range(6)), scores, 0.7, in_a_row)
        if not found.censored:
            continue
        seen += 1
        later = []
        for bits in range(2**in_a_row):
            more = [float(bits >> i & 1) for i in range(in_a_row)] + [1.0] * in_a_row
            later.append(crossing(list(range(6 + len(more))), scores + more, 0.7, in_a_row).place)
        assert min(later) == found.place + (scores[-1] < 0.7)
    assert seen > 30

"""Times to a target against scipy and brute force, and coverage in simulated worlds with censoring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from experiments.statistics.curves import Crossing
from experiments.statistics.targets import median_time, order_of_interval, ratio


def reached(*places: float) -> list[Crossing]:
    return [Crossing(place, censored=False) for place in places]


def beyond(*places: float) -> list[Crossing]:
    return [Crossing(place, censored=True) for place in places]


def product_limit(crossings: Sequence[Crossing], time: float) -> float:
    """The Kaplan-Meier estimate of P(T > time), from its definition."""
    found = 1.0
    for event in sorted({one.place for one in crossings if not one.censored and one.place <= time}):
        running = sum(one.place >= event for one in crossings)
        found *= 1 - sum(one.place == event and not one.censored for one in crossings) / running
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_median_is_that_of_the_product_limit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    crossings = [Crossing(float(generator.integers(1, 9)), bool(generator.random() < 0.4)) for _ in range(seed % 9 + 1)]
    times = sorted({one.place for one in crossings})
    expected = next((time for time in times if product_limit(crossings, time) <= 0.5 + 1e-12), None)
    assert median_time(crossings) == expected


def test_medians_by_hand() -> None:
    assert median_time(reached(3, 1, 2)) == 2
    assert median_time([*reached(1, 2), *beyond(5, 5)]) == 2
    assert median_time([*reached(1), *beyond(5, 5)]) is None
    assert median_time(beyond(5, 5)) is None
    # 6 and 10 are censored: S falls to 5/6, 5/6 * 3/4... (Kaplan and Meier's estimate by hand).
    assert median_time([*reached(4, 7, 12), *beyond(6, 10, 13)]) == 12
    with pytest.raises(ValueError, match="no seed"):
        median_time([])


@pytest.mark.parametrize("n", [2, 5, 6, 7, 10, 15, 16, 20, 31])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_without_censoring_it_is_scipys_interval_of_the_median(n: int, level: float) -> None:
    generator = np.random.default_rng(n)
    one, other = generator.lognormal(size=n), generator.lognormal(size=n)
    found = ratio(reached(*one), reached(*other), level)
    test = stats.quantile_test(one / other, p=0.5)
    low, high = test.confidence_interval(level)
    k = order_of_interval(n, level)
    assert (k == 0) == (math.isnan(low) or math.isnan(high))
    if k:
        assert found.interval == pytest.approx((low, high))
    else:
        assert found.interval == (0.0, math.inf)
    assert found.median[0] == found.median[1] == pytest.approx(np.exp(np.median(np.log(one / other))))
    assert (found.n, found.bounded) == (n, 0)


def test_five_seeds_give_no_interval_and_six_do() -> None:
    assert [order_of_interval(n, 0.95) for n in range(1, 11)] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert ratio(reached(*[2.0] * 5), reached(*[1.0] * 5)).text() == "2.0 times (no interval)"
    assert ratio(reached(*range(2, 8)), reached(*[1.0] * 6)).text() == "4.5 times [2.0, 7.0]"


def test_an_arm_that_never_arrives_gives_lower_bounds() -> None:
    found = ratio(beyond(*[60.0] * 6), reached(10, 12, 15, 20, 30, 40))
    assert found.interval == (1.5, math.inf)
    assert found.median == (pytest.approx(math.sqrt(3 * 4)), math.inf)
    assert found.text() == "more than 3.5 times (95 %: more than 1.5)"
    other = ratio(reached(10, 12, 15, 20, 30, 40), beyond(*[60.0] * 6))
    assert other.text() == "less than 0.3 times (95 %: less than 0.7)"
    assert ratio(beyond(*[60.0] * 6), beyond(*[60.0] * 6)).text() == "nothing can be said"
    few = ratio([*beyond(60.0), *reached(*[20.0] * 6)], reached(*[10.0] * 7))
    assert (few.median, few.interval, few.bounded) == ((2.0, 2.0), (2.0, math.inf), 1)
    assert few.text() == "2.0 times [more than 2.0]"


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="paired by seed, got 1 and 2 times"):
        ratio(reached(1), reached(1, 2))
    with pytest.raises(ValueError, match="at the target already"):
        ratio(reached(1), reached(0))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_censoring_only_widens(level: float) -> None:
    """Cutting runs short can move an end of the interval outwards, never inwards."""
    generator = np.random.default_rng(3)
    for _ in range(200):
        n = int(generator.integers(4, 16))
        one, other = generator.lognormal(1, 1, n), generator.lognormal(0, 1, n)
        whole = ratio(reached(*one), reached(*other), level)
        budget = float(generator.uniform(0.5, 6))
        cut = [[Crossing(min(t, budget), bool(t > budget)) for t in times] for times in (one, other)]
        found = ratio(cut[0], cut[1], level)
        assert found.interval[0] <= whole.interval[0]
        assert found.interval[1] >= whole.interval[1]
        assert found.median[0] <= whole.median[0] * (1 + 1e-12)
        assert found.median[1] >= whole.median[1] * (1 - 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 10, 17])
@pytest.mark.parametrize("budget", [math.inf, 4.0, 2.0])
def test_coverage_under_censoring(n: int, budget: float) -> None:
    """The true median ratio, 3, is inside in at least 95 % of worlds whose seeds share an effect."""
    generator = np.random.default_rng(n)
    worlds, inside = 2000, 0
    for _ in range(worlds):
        shared = generator.normal(0, 0.5, n)
        base = np.exp(shared + generator.normal(0, 0.4, n))
        slow = 3 * np.exp(shared + generator.standard_t(3, n) * 0.3)
        times = [[Crossing(min(t, budget), bool(t > budget)) for t in some] for some in (slow, base)]
        low, high = ratio(times[0], times[1]).interval
        inside += low <= 3 <= high
    assert inside / worlds >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / worlds)

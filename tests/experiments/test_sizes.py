"""Numbers of seeds and prompts: against closed forms, a least-squares fit, and simulated worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from dgpo_lab.ablation.statistics import two_way_interval
from experiments.statistics.sizes import (
    Variances,
    half_width,
    pooled_sd,
    sd_interval,
    seeds_for,
    seeds_for_sd,
    variances,
)

ONE_TASK = Variances(seed=0.02**2, prompt=0.3**2, both=0.4**2)


def world(generator: np.random.Generator, found: Variances, seeds: int, prompts: int) -> np.ndarray:
    sources = [(found.seed, (seeds, 1)), (found.prompt, (1, prompts)), (found.both, (seeds, prompts))]
    return 0.1 + sum(math.sqrt(variance) * generator.normal(size=shape) for variance, shape in sources)


def test_widths_of_the_plan() -> None:
    """An sd of 0.03: 5 seeds see 0.037, 12 see 0.019, 20 see 0.014 (t by hand from its table)."""
    of_seeds = Variances(0.03**2, 0.0, 0.0)
    for seeds, quantile in ((5, 2.776445), (12, 2.200985), (20, 2.093024)):
        expected = quantile * 0.03 / math.sqrt(seeds)
        assert half_width(of_seeds, seeds, 150, fixed=True) == pytest.approx(expected, rel=1e-6)
        assert half_width(of_seeds, seeds, 150, fixed=False) == pytest.approx(expected, rel=1e-6)
    assert half_width(of_seeds, 1, 150, fixed=True) == math.inf
    assert seeds_for_sd(0.03, 0.0191) == 12
    assert seeds_for_sd(0.03, 0.0190) == 13
    assert seeds_for(of_seeds, 150, 0.0191, fixed=True) == 12


@pytest.mark.parametrize("width", [0.004, 0.01, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_smallest_number_of_seeds_is_the_smallest(width: float, level: float) -> None:
    """Against counting upwards with scipy's interval, and the equation n = (t sd / width)^2 at a real n."""

    def of(seeds: float) -> float:
        return float(stats.t.ppf((1 + level) / 2, seeds - 1) * 0.03 / math.sqrt(seeds))

    found = seeds_for_sd(0.03, width, level=level)
    assert found == next(n for n in range(2, 10_000) if of(n) <= width)
    if of(2) > width:
        root = optimize.brentq(lambda n: of(n) - width, 1.5, 1e6)
        assert found == math.ceil(root)
    assert seeds_for(Variances(0.03**2, 0, 0), 10, width, fixed=True, level=level) == found


def test_a_width_that_seeds_alone_cannot_reach() -> None:
    assert seeds_for(ONE_TASK, 150, 0.015, fixed=False) is None
    assert half_width(ONE_TASK, 10_000, 150, fixed=False) == pytest.approx(1.959964 * 0.3 / math.sqrt(150), rel=0.01)
    assert seeds_for_sd(1.0, 1e-3) is None
    needed = seeds_for(ONE_TASK, 5000, 0.015, fixed=False)
    assert needed is not None
    assert (
        half_width(ONE_TASK, needed, 5000, fixed=False) <= 0.015 < half_width(ONE_TASK, needed - 1, 5000, fixed=False)
    )


@pytest.mark.parametrize(("seeds", "prompts"), [(3, 60), (5, 150), (12, 40)])
def test_both_sources_against_draws(seeds: int, prompts: int) -> None:
    """The quantile of a normal plus a scaled t variable, from two million draws."""
    generator = np.random.default_rng(seeds)
    n = 2_000_000
    of_prompts = math.sqrt(0.3**2 / prompts + 0.4**2 / (prompts * seeds))
    of_seeds = math.sqrt((0.02**2 + 0.4**2 / prompts) / seeds)
    draws = of_prompts * generator.normal(size=n) + of_seeds * generator.standard_t(seeds - 1, n)
    expected = np.quantile(np.abs(draws), 0.95)
    assert half_width(ONE_TASK, seeds, prompts, fixed=False) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("seeds", "prompts"), [(4, 10), (7, 23)])
def test_mean_squares_are_those_of_a_least_squares_fit(seeds: int, prompts: int) -> None:
    """With one task: residual mean square of D ~ seed + prompt, fitted with dummies by numpy."""
    values = world(np.random.default_rng(1), ONE_TASK, seeds, prompts)
    rows, columns = (index.ravel() for index in np.indices(values.shape))
    design = np.concatenate([np.eye(seeds)[rows], np.eye(prompts)[columns]], 1)
    solution, _, rank, _ = np.linalg.lstsq(design, values.ravel(), rcond=None)
    fitted = design @ solution
    residual = float(((values.ravel() - fitted) ** 2).sum()) / (values.size - rank)
    found = variances(values, ["a"] * prompts)
    assert found.both == pytest.approx(residual, rel=1e-9)
    of_prompts, of_seeds = (float(np.var(values.mean(axis), ddof=1)) for axis in (0, 1))
    assert found.prompt == pytest.approx(max(of_prompts - residual / seeds, 0))
    assert found.seed == pytest.approx(max(of_seeds - residual / prompts, 0))
    assert found.of_seeds(prompts) == pytest.approx(max(of_seeds, residual / prompts))


def test_variances_are_unbiased_within_tasks_of_unequal_size() -> None:
    """Two tasks with other means and other variances of prompts: the mean over worlds is the truth."""
    generator = np.random.default_rng(2)
    tasks = ["a"] * 10 + ["b"] * 30
    scale = np.array([0.5] * 10 + [0.1] * 30)
    found = []
    for _ in range(1000):
        values = 0.3 * generator.normal(size=(5, 1)) + scale * generator.normal(size=(5, 40))
        values = values + scale * generator.normal(size=(1, 40)) + np.array([0.2] * 10 + [0.7] * 30)
        found.append(variances(values, tasks))
    # The score is the mean of the tasks' means, of which that of a task has the variance of a prompt over its size.
    of_score = (0.5**2 / 10 + 0.1**2 / 30) / 4
    for part, truth in (("seed", 0.3**2), ("prompt", 40 * of_score), ("both", 40 * of_score)):
        drawn = [getattr(one, part) for one in found]
        assert np.mean(drawn) == pytest.approx(truth, abs=4 * np.std(drawn) / math.sqrt(len(drawn))), part


def test_what_has_no_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        variances(np.zeros((1, 4)), ["a"] * 4)
    with pytest.raises(ValueError, match="two prompts of every task"):
        variances(np.zeros((3, 3)), ["a", "a", "b"])
    with pytest.raises(ValueError, match="at least two values"):
        pooled_sd([[1.0], []])
    nothing = variances(np.tile([0.1, 0.1], (3, 1)), ["a", "a"])
    assert (nothing.seed, nothing.prompt, nothing.both) == pytest.approx((0, 0, 0), abs=1e-30)


def test_pooled_deviations_and_their_intervals() -> None:
    samples = [[0.1, 0.2, 0.4], [0.9], [0.3, 0.5]]
    sd, freedom = pooled_sd(samples)
    assert freedom == 3
    assert sd**2 == pytest.approx((2 * np.var(samples[0], ddof=1) + np.var(samples[2], ddof=1)) / 3)
    low, high = sd_interval(0.03, 4)
    assert (low, high) == pytest.approx([0.03 * math.sqrt(4 / q) for q in stats.chi2.ppf([0.975, 0.025], 4)])


@pytest.mark.slow
def test_assurance_is_the_share_of_experiments_that_are_narrow_enough() -> None:
    generator = np.random.default_rng(3)
    for assurance in (0.5, 0.8, 0.95):
        seeds = seeds_for_sd(0.03, 0.015, assurance=assurance)
        assert seeds is not None
        shares = []
        for n in (seeds - 1, seeds):
            sds = generator.normal(0, 0.03, (40_000, n)).std(1, ddof=1)
            shares.append(np.mean(stats.t.ppf(0.975, n - 1) * sds / math.sqrt(n) <= 0.015))
        assert shares[0] < assurance + 0.01
        assert shares[1] >= assurance - 0.01


@pytest.mark.slow
def test_predicted_widths_are_those_of_intervals() -> None:
    """The mean width of `two_way_interval` over worlds of known variances."""
    generator = np.random.default_rng(4)
    for seeds, prompts in ((5, 60), (12, 150)):
        widths = []
        for number in range(25):
            found = two_way_interval(world(generator, ONE_TASK, seeds, prompts), ["a"] * prompts, seed=number)
            assert found.low is not None
            assert found.high is not None
            widths.append((found.high - found.low) / 2)
        assert np.mean(widths) == pytest.approx(half_width(ONE_TASK, seeds, prompts, fixed=False), rel=0.1)

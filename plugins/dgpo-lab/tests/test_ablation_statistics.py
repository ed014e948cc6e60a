"""Statistics of an ablation against closed forms, brute force, and simulated worlds whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dgpo_lab.ablation import statistics as module
from dgpo_lab.ablation.statistics import (
    holm,
    pairs_for,
    sign_flip_test,
    t_interval,
    task_mean,
    two_way_interval,
)


def test_t_interval() -> None:
    values = [0.41, 0.52, 0.44, 0.61, 0.5]
    found = t_interval(values)
    half = 2.7764451052 * np.std(values, ddof=1) / math.sqrt(5)  # the 0.975 quantile of t with 4 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((0.496, 0.496 - half, 0.496 + half), rel=1e-9)
    assert (found.n, found.over) == (5, "seeds")
    one = t_interval([0.3])
    assert (one.value, one.low, one.high) == (0.3, None, None)
    # With one degree of freedom t is Cauchy's distribution, with two its quantile is (2p - 1) / sqrt(2 p (1 - p)).
    for level in (0.5, 0.95, 0.999):
        p = (1 + level) / 2
        two, three = t_interval([0.0, 2.0], level), t_interval([-1.0, 0.0, 1.0], level)
        assert two.high == pytest.approx(1 + math.tan(math.pi * level / 2), rel=1e-9)
        assert three.high == pytest.approx(level / math.sqrt(2 * p * (1 - p)) / math.sqrt(3), rel=1e-9)
    flat = t_interval([0.3, 0.3])
    assert (flat.low, flat.high) == (0.3, 0.3)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11])
def test_sign_flips_against_brute_force(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    found = sign_flip_test(list(differences))
    means = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=n)]
    expected = np.mean([abs(mean) >= abs(differences.mean()) - 1e-12 for mean in means])
    assert found.p == pytest.approx(expected, abs=1e-15)
    assert (found.smallest, found.n, found.exact) == (min(1.0, 2 * 0.5**n), n, True)


def test_the_fewest_pairs_for_a_level_are_those_of_the_test_itself() -> None:
    """With n pairs all on one side p is as small as it gets; below the level for the first time at that n."""
    for level in (0.2, 0.05, 0.01):
        for comparisons in (1, 2, 3, 5):
            ps = [holm([sign_flip_test([1.0 + i for i in range(n)]).p] * comparisons)[0] for n in range(1, 14)]
            assert pairs_for(level, comparisons) == next(n for n, p in enumerate(ps, 1) if p < level)
    assert pairs_for(0.05) == 6


def test_the_smallest_p_is_reached_and_never_undercut() -> None:
    assert sign_flip_test([0.1, 0.2, 0.3]).p == 0.25
    assert sign_flip_test([0.1, 0.2, 0.3, 0.1, 0.5]).p == 0.0625
    assert sign_flip_test([0.0, 0.0, 0.0]).p == 1.0
    assert sign_flip_test([0.3, -0.3]).p == 1.0
    # Sums of the same numbers in another order: a rounding must not count as more extreme, nor as less.
    assert sign_flip_test([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).p == 2 / 64
    with pytest.raises(ValueError, match="no difference"):
        sign_flip_test([])


def test_many_seeds_are_sampled() -> None:
    differences = np.random.default_rng(5).normal(0.4, 1, 25)
    found = sign_flip_test(list(differences))
    assert not found.exact
    signs = np.random.default_rng(0).choice((-1, 1), size=(50_000, 25))
    assert found.p == pytest.approx(np.mean(np.abs(signs @ differences) >= abs(differences.sum())), abs=0.006)
    assert found.smallest == pytest.approx(2e-5, rel=1e-4)
    assert sign_flip_test([1.0 + i for i in range(25)]).p == found.smallest


def test_the_sign_flip_test_is_honest() -> None:
    """Where nothing differs, p <= a comes in at most a share a of experiments."""
    generator = np.random.default_rng(11)
    ps = np.array([sign_flip_test(list(generator.standard_t(3, 6))).p for _ in range(1500)])
    for level in (1 / 32, 0.0625, 0.25):
        assert np.mean(ps <= level) <= level + 3 * math.sqrt(level * (1 - level) / len(ps))


def test_holm_by_hand_and_against_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    generator = np.random.default_rng(2)
    for _ in range(50):
        ps = generator.random(int(generator.integers(1, 8))).round(2)
        for level in (0.01, 0.05, 0.2):
            # The procedure itself: step down while p_(k) <= level / (m - k), reject what was passed.
            order, rejected = np.argsort(ps, kind="stable"), set()
            for rank, i in enumerate(order):
                if ps[i] * (len(ps) - rank) > level:
                    break
                rejected.add(int(i))
            assert {i for i, p in enumerate(holm(list(ps))) if p <= level} == rejected


# -- seeds and prompts ----------------------------------------------------------------------------------------------


def world(
    generator: np.random.Generator, seeds: int, prompts: int, *, of_seed: float, of_prompt: float, of_both: float
) -> np.ndarray:
    """Scores [S, P] around 0.5 in a two-way random-effects world."""
    return (
        0.5
        + of_seed * generator.normal(size=(seeds, 1))
        + of_prompt * generator.normal(size=(1, prompts))
        + of_both * generator.normal(size=(seeds, prompts))
    )


def test_the_value_is_the_mean_of_tasks_means() -> None:
    values = np.array([[1.0, 0.0, 0.5, np.nan], [0.0, 0.0, 1.0, 1.0]])
    tasks = ["a", "a", "b", "b"]
    assert task_mean(values, tasks).tolist() == [0.5, 0.5]
    assert two_way_interval(values, tasks).value == 0.5
    assert task_mean(np.array([[np.nan, 0.3]]), ["a", "b"]).tolist() == [0.3]


def test_without_prompt_noise_it_is_the_t_interval() -> None:
    scores = np.array([0.41, 0.52, 0.44, 0.61])
    found = two_way_interval(np.repeat(scores[:, None], 30, 1), ["a"] * 10 + ["b"] * 20)
    expected = t_interval(list(scores))
    assert found.low is not None
    assert expected.low is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert found.over == "seeds and prompts"


def test_without_seed_noise_it_is_the_bootstrap_over_prompts() -> None:
    prompts = (np.random.default_rng(1).random(60) < 0.3).astype(float)
    found = two_way_interval(np.tile(prompts, (4, 1)), ["a"] * 60)
    reference = stats.bootstrap(
        (prompts,), np.mean, method="percentile", rng=np.random.default_rng(0), n_resamples=9999
    )
    low, high = reference.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)
    single = two_way_interval(prompts[None], ["a"] * 60)
    assert single.over == "prompts"
    assert (single.low, single.high) == pytest.approx((low, high), abs=0.012)


def test_prompts_are_resampled_within_their_task() -> None:
    """Tasks that differ by much and prompts that do not: nothing varies."""
    found = two_way_interval(np.array([[0.1] * 5 + [0.9] * 3] * 2), ["a"] * 5 + ["b"] * 3)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_prompts_that_a_seed_lacks() -> None:
    values = world(np.random.default_rng(0), 3, 40, of_seed=0.1, of_prompt=0.2, of_both=0.1)
    whole = two_way_interval(values, ["a"] * 40)
    values[0, ::4] = np.nan
    found = two_way_interval(values, ["a"] * 40)
    assert found.value == pytest.approx(np.nanmean(values, 1).mean())
    assert found.low is not None
    assert whole.low is not None
    assert found.low == pytest.approx(whole.low, abs=0.1)


@pytest.mark.parametrize(
    ("seeds", "noise"),
    [
        (3, {"of_seed": 0.1, "of_prompt": 0.0, "of_both": 0.0}),
        (3, {"of_seed": 0.05, "of_prompt": 0.3, "of_both": 0.3}),
        (5, {"of_seed": 0.05, "of_prompt": 0.4, "of_both": 0.0}),
    ],
)
def test_coverage(seeds: int, noise: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth lies inside in at least 95 % of worlds (less two standard errors of so many worlds), which a bootstrap
    over the seeds misses by far."""
    monkeypatch.setattr(module, "RESAMPLES", 1000)
    generator = np.random.default_rng(7)
    inside = naive = 0
    worlds = 250
    for number in range(worlds):
        values = world(generator, seeds, 40, **noise)
        found = two_way_interval(values, ["a"] * 20 + ["b"] * 20, seed=number)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.5 <= found.high
        means = values.mean(1)[generator.integers(0, seeds, size=(300, seeds))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        naive += low <= 0.5 <= high
    assert inside / worlds >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / worlds)
    assert naive / worlds < 0.88

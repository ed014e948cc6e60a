"""`dsm-gap-t-min` on synthetic errors: where the work of the preference begins, and a policy without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_adaptive_tmin.dsm_gap import DsmGapTmin, quantile
from dgpo_adaptive_tmin.options import DsmGapOptions
from dgpo_core.contracts import Probe, TimestepContext

COUNT = 16
Gain = Callable[[float], float]


class Errors(Probe):
    """The mean error of the base model is `scale(sigma)`; that of the policy is (1 - gain(sigma)) times as large."""

    def __init__(self, gain: Gain, scale: Gain = lambda sigma: 1.0) -> None:
        self.gain, self.scale = gain, scale
        self.asked: list[tuple[int, int]] = []
        self.sigmas = torch.zeros(0)

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        self.asked.append((count, refine))
        return torch.zeros(count, 1, 2, 2)

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        self.sigmas = sigmas
        sharded = torch.rand(len(x0), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
        base = torch.stack([self.scale(s) * sharded for s in sigmas.tolist()])
        gain = torch.tensor([self.gain(s) * self.scale(s) for s in sigmas.tolist()], dtype=torch.float64)
        return base - gain[:, None], base


def context(**changes: Any) -> TimestepContext:
    fields = {"t_min": 0.0, "t_max": 1.0, "shift": 1.0, "iteration": 0, "iterations": 10} | changes
    return TimestepContext(torch.linspace(1, 0, 9, dtype=torch.float64), **fields)


def policy(**options: Any) -> DsmGapTmin:
    return DsmGapTmin(DsmGapOptions.model_validate({"samples": COUNT, "highest": 0.8} | options))


def chosen(probe: Probe, **options: Any) -> float:
    """Return t_min after one measurement."""
    made = policy(**options)
    made.measure(probe, context())
    return made.bounds(context())[0]


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_quantile_matches_numpy(share: float, seed: int) -> None:
    """Points are uniform within each bin, in proportion to its work; some bins are empty."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4000, 12) * random.integers(0, 2, 12)
    counts[random.integers(12)] += 2000
    points = np.concatenate([(i + (np.arange(n) + 0.5) / n) / 12 for i, n in enumerate(counts) if n])
    found = quantile(torch.tensor(counts, dtype=torch.float64), share)
    assert found == pytest.approx(np.quantile(points, share), abs=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_linear_work_has_a_known_quantile(share: float) -> None:
    """max(-gap, 0) = s - root has the integral (s - root)^2 / 2, so the quantile is root + sqrt(share) (1 - root)."""
    for root in (0.0, 0.4, 0.6):
        expected = root + share**0.5 * (1 - root)
        found = chosen(Errors(lambda s, root=root: root - s), bins=100, below=share, highest=1.0)  # type: ignore[misc]
        assert found == pytest.approx(expected, abs=5e-4)


def test_positive_gaps_are_not_work() -> None:
    """Work of 1 at 0.3 and of 3 at 0.7, in four bins of width 0.1; all other bins have large positive gaps."""
    gaps = [0.9, 0.9, -0.1, 0.5, 0.9, 0.9, -0.3, 0.2, 0.9, 0.9]
    assert chosen(Errors(lambda s: gaps[int(s * 10)]), bins=10, below=0.125) == pytest.approx(0.25)
    assert chosen(Errors(lambda s: gaps[int(s * 10)]), bins=10, below=0.5) == pytest.approx(0.6 + 0.1 / 3)


def test_gap_is_relative_to_the_error_of_the_base() -> None:
    """Errors are large at both ends of [0, 1]; the gap is relative."""
    made = policy(bins=8)
    probe = Errors(lambda s: 0.3 - s, scale=lambda s: 0.2 + (s - 0.5) ** 2)
    made.measure(probe, context())
    times = (np.arange(8) + 0.5) / 8
    assert probe.sigmas.tolist() == pytest.approx(times)
    sharded = float((torch.rand(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5).mean())
    assert made.metrics() == pytest.approx(
        {"gap_low": (0.3 - times[-1]) / sharded, "gap_high": (0.3 - times[0]) / sharded}
    )


def test_samples_use_the_steps_of_the_rollouts() -> None:
    probe = Errors(lambda s: 0.3 - s)
    chosen(probe)
    assert probe.asked == [(COUNT, 1)]


def step(at: float) -> Gain:
    """All work is uniform in [at, at + 0.1], so half of it lies below the center."""
    return lambda s: -0.2 if at < s < at + 0.1 else 0.3


def test_start_is_kept_without_work() -> None:
    made = policy(start="shift(0.5)", every=1, smoothing=0.5, threshold=0.05, bins=10, below=0.5)
    assert made.bounds(context(shift=3.0)) == (pytest.approx(0.75), 1.0)
    still = Errors(lambda s: 0.2 if s < 0.5 else -0.02)
    for iteration in range(3):
        made.measure(still, context(iteration=iteration, shift=3.0))
        assert made.bounds(context(shift=3.0)) == (pytest.approx(0.75), 1.0)
    assert made.state_dict()["t_min"] is None
    assert set(made.metrics()) == {"gap_low", "gap_high"}
    made.measure(Errors(step(0.2)), context(iteration=3))
    assert made.bounds(context())[0] == pytest.approx(0.25), "the first one that counts counts in full"
    made.measure(still, context(iteration=4))
    assert made.bounds(context())[0] == pytest.approx(0.25), "what was found stays"


def test_t_min_follows_the_work() -> None:
    made = policy(every=1, smoothing=0.5, bins=10, below=0.5)
    found = []
    for iteration, at in enumerate((0.2, 0.6, 0.6, 0.0)):
        made.measure(Errors(step(at)), context(iteration=iteration))
        found.append(made.bounds(context())[0])
    assert found == pytest.approx([0.25, 0.45, 0.55, 0.3])


def test_nonfinite_errors_are_ignored() -> None:
    made = policy(every=5, bins=10, below=0.5)
    made.measure(Errors(step(0.2)), context())
    made.measure(Errors(lambda s: float("nan")), context(iteration=5))
    assert made.bounds(context())[0] == pytest.approx(0.25)
    made.measure(Errors(step(0.6)), context(iteration=6))
    assert made.bounds(context())[0] == pytest.approx(0.45), "made again in the next iteration"


def test_random_sampler_is_accepted() -> None:
    policy().check(context(deterministic=False), 4)

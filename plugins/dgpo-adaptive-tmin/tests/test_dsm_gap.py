"""`dsm-gap-t-min` on made-up errors: where the gap changes sign, and a policy that has not moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_adaptive_tmin.dsm_gap import DsmGapTmin, sign_change
from dgpo_adaptive_tmin.options import DsmGapOptions
from dgpo_core.contracts import Probe, TimestepContext

COUNT = 16
Gain = Callable[[float], float]


class Errors(Probe):
    """The base model's error at a time is `scale(sigma)` on average; the policy's is less by `gain(sigma)` of it."""

    def __init__(self, gain: Gain, scale: Gain = lambda sigma: 1.0) -> None:
        self.gain, self.scale = gain, scale
        self.asked: list[tuple[int, int]] = []
        self.sigmas = torch.zeros(0)

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        self.asked.append((count, refine))
        return torch.zeros(count, 1, 2, 2)

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        self.sigmas = sigmas
        spread = torch.rand(len(x0), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
        base = torch.stack([self.scale(s) * spread for s in sigmas.tolist()])
        gain = torch.tensor([self.gain(s) * self.scale(s) for s in sigmas.tolist()], dtype=torch.float64)
        return base - gain[:, None], base


def context(**changes: Any) -> TimestepContext:
    fields = {"t_min": 0.0, "t_max": 1.0, "shift": 1.0, "iteration": 0, "iterations": 10} | changes
    return TimestepContext(torch.linspace(1, 0, 9, dtype=torch.float64), **fields)


def policy(**options: Any) -> DsmGapTmin:
    return DsmGapTmin(DsmGapOptions.model_validate({"samples": COUNT, "highest": 0.8} | options))


def chosen(probe: Probe, **options: Any) -> float:
    """t_min after one measurement."""
    made = policy(**options)
    made.measure(probe, context())
    return made.bounds(context())[0]


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ([0.2, 0.1, -0.1, -0.3], 0.5),  # half way between 0.4 and 0.6
        ([0.3, -0.1, 0.2, -0.2], 0.35),  # the first one; 3 / 4 of the way from 0.2 to 0.4
        ([0.1, 0.0, -0.1, -0.1], 0.4),
        ([-0.1, 0.2, 0.2, -0.2], 0.0),
        ([0.0, 0.2, 0.2, -0.2], 0.0),
        ([0.1, 0.1, 0.1, 0.1], 0.8),
    ],
)
def test_the_first_change_of_sign_from_below(gap: list[float], expected: float) -> None:
    times = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    assert sign_change(torch.tensor(gap, dtype=torch.float64), times) == pytest.approx(expected)


def test_a_linear_gap_is_met_exactly_whatever_the_bins() -> None:
    for root in (0.13, 0.37, 0.6):
        for bins in (5, 10, 31):
            assert chosen(Errors(lambda s, root=root: root - s), bins=bins) == pytest.approx(root)  # type: ignore[misc]


def test_the_gap_is_a_share_of_the_bases_error() -> None:
    """Errors are large at both ends of time; what counts is the share."""
    made = policy(bins=8)
    probe = Errors(lambda s: 0.3 - s, scale=lambda s: 0.2 + (s - 0.5) ** 2)
    made.measure(probe, context())
    times = (np.arange(8) + 0.5) / 8
    assert probe.sigmas.tolist() == pytest.approx(times)
    spread = float((torch.rand(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5).mean())
    assert made.metrics() == pytest.approx(
        {"gap_low": (0.3 - times[-1]) / spread, "gap_high": (0.3 - times[0]) / spread}
    )


def test_only_samples_in_the_rollouts_steps_are_drawn() -> None:
    probe = Errors(lambda s: 0.3 - s)
    chosen(probe)
    assert probe.asked == [(COUNT, 1)]


def test_a_policy_that_has_not_moved_keeps_the_start() -> None:
    made = policy(start="shift(0.5)", every=1, smoothing=0.5, threshold=0.05)
    assert made.bounds(context(shift=3.0)) == (pytest.approx(0.75), 1.0)
    still = Errors(lambda s: 0.04 if s < 0.5 else -0.04, scale=lambda s: 1.0)
    for iteration in range(3):
        made.measure(still, context(iteration=iteration, shift=3.0))
        assert made.bounds(context(shift=3.0)) == (pytest.approx(0.75), 1.0)
    assert made.state_dict()["t_min"] is None
    assert set(made.metrics()) == {"gap_low", "gap_high"}
    made.measure(Errors(lambda s: 0.25 - s), context(iteration=3))
    assert made.bounds(context())[0] == pytest.approx(0.25), "the first one that counts counts in full"
    made.measure(still, context(iteration=4))
    assert made.bounds(context())[0] == pytest.approx(0.25), "what was found stays"


def test_it_rises_and_falls_with_the_sign_change() -> None:
    made = policy(every=1, smoothing=0.5)
    found = []
    for iteration, root in enumerate((0.2, 0.6, 0.6, -0.1)):
        made.measure(Errors(lambda s, root=root: root - s), context(iteration=iteration))  # type: ignore[misc]
        found.append(made.bounds(context())[0])
    assert found == pytest.approx([0.2, 0.4, 0.5, 0.25])


def test_a_gap_that_is_positive_throughout_asks_for_the_highest() -> None:
    assert chosen(Errors(lambda s: 0.2)) == pytest.approx(0.8)
    assert chosen(Errors(lambda s: -0.2)) == 0.0


def test_any_sampler_will_do() -> None:
    policy().check(context(deterministic=False), 4)

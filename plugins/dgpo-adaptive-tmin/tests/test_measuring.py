"""Base class of the measuring policies: when it measures, how t_min follows, and its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgpo_adaptive_tmin.bounds import MeasuringPolicy
from dgpo_adaptive_tmin.disagreement import DisagreementTmin
from dgpo_adaptive_tmin.options import DisagreementOptions
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError

NAN, INF = float("nan"), float("inf")
NO_PROBE: Any = None
EVEN = torch.linspace(1, 0, 11, dtype=torch.float64)
"""Times of a sampler: 1, 0.9, ... 0."""


class Reported(MeasuringPolicy):
    """Returns the given measurements."""

    def __init__(self, **options: Any) -> None:
        super().__init__(DisagreementOptions(**({"highest": 0.9} | options)))
        self.answers: list[float | None] = []

    def estimate(self, probe: Probe, context: TimestepContext) -> tuple[float | None, dict[str, float]]:
        found = self.answers.pop(0)
        return found, {} if found is None else {"found": found}


def context(iteration: int = 0, t_min: float = 0.0, t_max: float = 1.0, **changes: Any) -> TimestepContext:
    return replace(TimestepContext(EVEN, t_min, t_max, 1.0, iteration, 20), **changes)


def follow(policy: Reported, answers: list[float | None], iterations: int, **changes: Any) -> list[float]:
    """Return t_min of each iteration."""
    policy.answers = list(answers)
    found = []
    for i in range(iterations):
        policy.measure(NO_PROBE, context(i, **changes))
        found.append(policy.bounds(context(i, **changes))[0])
    return found


def test_first_measurement_is_not_smoothed() -> None:
    found = follow(Reported(every=1, smoothing=0.75), [0.4, 0.8, 0.0], 3)
    assert found == pytest.approx([0.4, 0.75 * 0.4 + 0.25 * 0.8, 0.75 * 0.5])


def test_without_smoothing_t_min_is_the_measurement() -> None:
    assert follow(Reported(every=1, smoothing=0.0), [0.4, 0.8, 0.1], 3) == [0.4, 0.8, 0.1]


def test_interval_of_measurements() -> None:
    policy = Reported(every=3, smoothing=0.0)
    assert follow(policy, [0.1, 0.2, 0.3], 8) == [0.1] * 3 + [0.2] * 3 + [0.3] * 2
    assert policy.answers == []


def test_largest_t_min_before_the_first_measurement() -> None:
    policy = Reported(highest=0.7)
    assert policy.bounds(context()) == (0.7, 1.0)
    assert policy.metrics() == {}
    drawn = policy.draw(500, context(t_max=0.9), Draws(0))
    assert 0.7 <= float(drawn.min()) < float(drawn.max()) <= 0.9


def test_t_min_is_clamped() -> None:
    """The measurement is clamped before smoothing, so an outlier has no lasting effect."""
    policy = Reported(every=1, smoothing=0.5, highest=0.6)
    assert follow(policy, [1.0, 1.0, 0.0, 0.0], 4, t_min=0.2) == pytest.approx([0.6, 0.6, 0.4, 0.3])
    assert policy.bounds(context(t_max=0.25)) == (0.25, 0.25)


def test_highest_uses_the_shift_of_the_run() -> None:
    assert Reported(highest="shift(0.5)").bounds(context(shift=3.0)) == (pytest.approx(0.75), 1.0)


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_nonfinite_measurement_is_discarded_and_repeated(wrong: float) -> None:
    policy = Reported(every=4, smoothing=0.0)
    assert follow(policy, [wrong, 0.3, wrong, 0.5], 8) == [0.9, 0.3, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5]
    assert policy.answers == []
    assert policy.metrics() == {"found": 0.5}


def test_state_contains_measurement_and_whether_one_is_due() -> None:
    for answers in ([0.4, 0.2, 0.6], [0.4, NAN, 0.2, 0.5], [NAN, 0.2, 0.3, 0.1]):
        whole = Reported(every=2)
        wanted = follow(whole, answers, 6)
        for stop in range(1, 6):
            first, second = Reported(every=2), Reported(every=2)
            follow(first, answers, stop)
            second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
            second.answers = list(first.answers)
            found = []
            for i in range(stop, 6):
                second.measure(NO_PROBE, context(i))
                found.append(second.bounds(context(i))[0])
            assert found == wanted[stop:]
            assert second.metrics() == whole.metrics()


def test_too_few_steps_are_refused_with_the_largest_t_min() -> None:
    """There are five times from 0.6 to 1, and four above 0.65."""
    policy = Reported(highest=0.65, within="sampler-steps")
    policy.check(context(), 4)
    with pytest.raises(UserError, match=r"reach \[0\.6500, 1\.0000\] \(.*highest\), where only 4 of .*count to 4"):
        policy.check(context(), 5)
    for low in (0.0, 0.3, 0.65):
        follow(policy, [low], 1)
        assert len(set(policy.draw(4, context(), Draws(1)).tolist())) == 4


def test_a_largest_t_min_that_leaves_a_single_time_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"reach \[0\.8000, 0\.8000\] \(set by timesteps\.options\.highest\), a single time"
    ):
        Reported(highest=0.9).check(context(t_max=0.8), 1)
    Reported(highest=0.79).check(context(t_max=0.8), 1)


def test_disagreement_refuses_random_samplers() -> None:
    policy = DisagreementTmin(DisagreementOptions())
    policy.check(context(), 4)
    with pytest.raises(UserError, match=r"rollout\.sampler is random; use dsm-gap-t-min or scheduled-t-min, or a det"):
        policy.check(context(deterministic=False), 4)


def test_estimate_of_none_keeps_t_min() -> None:
    policy = Reported(every=1, smoothing=0.5, highest=0.9)
    assert follow(policy, [None, None, 0.4, None, 0.2], 5) == pytest.approx([0.9, 0.9, 0.4, 0.4, 0.3])

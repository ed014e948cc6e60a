"""`scheduled-t-min` against closed forms, and its errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgpo_adaptive_tmin.options import ScheduledOptions
from dgpo_adaptive_tmin.scheduled import ScheduledTmin
from dgpo_core.builtin.samplers import FlowDPMSolverPP
from dgpo_core.contracts import TimestepContext
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.types import Schedule

DPM = FlowDPMSolverPP(None).sigmas(10, Schedule(3.0))


def context(iteration: int = 0, t_min: float = 0.0, t_max: float = 1.0, **changes: Any) -> TimestepContext:
    return replace(TimestepContext(DPM, t_min, t_max, 3.0, iteration, 20), **changes)


def policy(**options: Any) -> ScheduledTmin:
    return ScheduledTmin(ScheduledOptions(**options))


def bounds(policy: ScheduledTmin, **changes: Any) -> list[tuple[float, float]]:
    """Return the bounds of every iteration."""
    return [policy.bounds(context(i, **changes)) for i in range(20)]


def test_linear_schedule() -> None:
    """From shift(0.6) to shift(0.2), which are 9/11 and 3/7 at shift 3."""
    found = bounds(policy())
    assert [low for low, _ in found] == pytest.approx([9 / 11 + i / 20 * (3 / 7 - 9 / 11) for i in range(20)])
    assert {high for _, high in found} == {1.0}


def test_cosine_schedule() -> None:
    """The fraction is sin^2(pi p / 2), which equals that of the linear schedule at p = 1/2."""
    found = bounds(policy(start=0.9, end=0.1, shape="cosine"))
    assert [low for low, _ in found] == pytest.approx([0.9 - 0.8 * math.sin(math.pi * i / 40) ** 2 for i in range(20)])
    assert found[10][0] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_end_is_reached_at_until_and_kept(shape: str) -> None:
    found = [low for low, _ in bounds(policy(start=0.8, end=0.2, until=0.25, shape=shape))]
    assert found[:5] == sorted(found[:5], reverse=True)
    assert found[5:] == pytest.approx([0.2] * 15)
    assert found[4] == pytest.approx(0.8 - 0.6 * (0.8 if shape == "linear" else math.sin(0.4 * math.pi) ** 2))


def test_t_min_may_increase_and_t_max_may_move() -> None:
    found = bounds(policy(start=0.2, end=0.5, t_max_start=0.6, t_max_end=1.0))
    assert [low for low, _ in found] == pytest.approx([0.2 + 0.3 * i / 20 for i in range(20)])
    assert [high for _, high in found] == pytest.approx([0.6 + 0.4 * i / 20 for i in range(20)])


def test_bounds_are_clamped_to_the_range_of_the_run() -> None:
    found = bounds(policy(start=0.9, end=0.1, t_max_start=0.95, t_max_end=1.0), t_min=0.3, t_max=0.97)
    for i, (low, high) in enumerate(found):
        assert low == pytest.approx(max(0.3, 0.9 - 0.8 * i / 20))
        assert high == pytest.approx(min(0.97, 0.95 + 0.05 * i / 20))
    assert found[-1][0] == 0.3, "the run's own t_min, to the last bit"


def test_draws_are_within_the_bounds_of_the_iteration() -> None:
    chosen = policy(start=0.8, end=0.2, t_max_start=0.9, t_max_end=0.5)
    for i in (0, 7, 19):
        low, high = chosen.bounds(context(i))
        drawn = chosen.draw(2000, context(i), Draws(1).at(i))
        assert low <= float(drawn.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(drawn.max()) <= high


def test_sampler_steps_are_times_of_the_sampler() -> None:
    chosen = policy(start=0.8, end=0.2, within="sampler-steps")
    for i in (0, 19):
        low, _ = chosen.bounds(context(i))
        drawn = chosen.draw(3, context(i), Draws(1).at(i)).tolist()
        assert set(drawn) <= {sigma for sigma in DPM.tolist() if sigma >= low}
        assert len(set(drawn)) == 3


# -- what is refused --------------------------------------------------------------------------------------------------


def test_too_few_steps_are_refused_before_the_run() -> None:
    """Of the ten sigmas 0.9997, 0.9639, 0.9227, 0.8747, 0.8181 ... four are above 0.85 and five above 0.8."""
    for start, fits in ((0.85, 4), (0.8, 5)):
        chosen = policy(start=start, end=0.0, within="sampler-steps")
        chosen.check(context(), fits)
        with pytest.raises(UserError) as caught:
            chosen.check(context(), fits + 1)
        for part in (
            f"count: {fits + 1} times cannot",
            f"the bounds reach [{start:.4f}, 1.0000] (set by timesteps.options.start, end, t_max_start and t_max_end)",
            f"only {fits} of the sampler's 10 lie; lower timesteps.count to {fits}, move them less",
            "remove `within: sampler-steps`",
        ):
            assert part in str(caught.value)


def test_message_without_any_step_does_not_suggest_a_count() -> None:
    with pytest.raises(UserError, match=r"only 0 of the sampler's 10 lie; move them less, or remove"):
        policy(start=0.97, end=0.0, t_max_start=0.98, within="sampler-steps").check(context(), 1)


def test_every_iteration_is_checked_for_too_few_steps() -> None:
    """The steps are near both ends of [0, 1]. The range is 0.3 wide at the start and 0.4 at the end; in between it
    is wider than 0.3 but contains the fewest steps."""
    sigmas = torch.tensor([0.95, 0.9, 0.85, 0.15, 0.1, 0.05, 0.0], dtype=torch.float64)
    chosen = policy(start=0.05, end=0.6, t_max_start=0.35, t_max_end=1.0, within="sampler-steps")
    steps = [sum(low <= s <= high for s in sigmas.tolist()) for low, high in bounds(chosen)]
    assert (steps[0], min(steps)) == (3, 0)
    assert chosen.bounds(context(20)) == (pytest.approx(0.6), 1.0)
    with pytest.raises(UserError, match="cannot be drawn without replacement"):
        chosen.check(context(sigmas=sigmas), 3)
    policy(start=0.05, end=0.6, t_max_start=0.35, t_max_end=1.0).check(context(sigmas=sigmas), 3)


@pytest.mark.parametrize("within", ["uniform", "sampler-steps"])
def test_check_agrees_with_drawing_in_every_iteration(within: str) -> None:
    """With sampler steps, a failed check also means that drawing fails in some iteration."""
    passed = 0
    for start in (0.1, 0.5, 0.84, 0.9):
        for high in (0.35, 0.93, 1.0):
            for count in (1, 2, 4):
                chosen = policy(start=start, end=0.2, t_max_start=high, within=within)
                try:
                    chosen.check(context(), count)
                except UserError:
                    if start < high:
                        with pytest.raises(UserError):
                            draw_all(chosen, count)
                    continue
                passed += 1
                draw_all(chosen, count)
    assert passed > 8


def draw_all(policy: ScheduledTmin, count: int) -> None:
    for i in range(20):
        assert policy.draw(count, context(i), Draws(0)).shape == (count,)


def test_crossing_bounds_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"t_min must stay below t_max, but in iteration 1 they are 0\.8182 and 0\.5000"
    ):
        policy(t_max_start=0.5).check(context(), 1)
    crossing = policy(start=0.1, end=0.9, t_max_start=1.0, t_max_end=0.5)
    with pytest.raises(UserError, match=r"in iteration 15 they are 0\.6600 and 0\.6500"):
        crossing.check(context(), 1)


def test_single_time_is_refused() -> None:
    """t_min starts above the t_max of the run, so every draw would be t_max."""
    with pytest.raises(UserError, match=r"reach \[0\.7000, 0\.7000\] .*, a single time; separate them .*0\.7000\]"):
        policy().check(context(t_max=0.7), 1)
    policy(start=0.6).check(context(t_max=0.7), 1)

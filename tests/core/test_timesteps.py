"""Timestep policies: ranges, distribution, keys, and what is said when there are too few steps."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.builtin.timesteps import SamplerSteps, UniformTimesteps
from dgpo_core.contracts import TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.types import Schedule

POLICIES: list[type[TimestepPolicy]] = [UniformTimesteps, SamplerSteps]
DRAWS = Draws(7).at("timesteps")


def _context(t_min: float = 0.5625, t_max: float = 1.0, steps: int = 10) -> TimestepContext:
    return TimestepContext(
        sigmas=FlowDPMSolverPP(None).sigmas(steps, Schedule(3.0)),
        t_min=t_min,
        t_max=t_max,
        shift=3.0,
        iteration=1,
        iterations=9,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_count_times_inside_the_range(policy: type[TimestepPolicy]) -> None:
    context = _context(0.6, 0.97)
    for iteration in range(50):
        times = policy(None).draw(4, context, DRAWS.at(iteration))
        assert times.shape == (4,)
        assert times.dtype == torch.float64
        assert times.device.type == "cpu"
        assert ((times >= 0.6) & (times <= 0.97)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_key_alone_decides(policy: type[TimestepPolicy]) -> None:
    first = policy(None).draw(4, _context(), DRAWS.at(3))
    torch.manual_seed(5)
    assert torch.equal(first, policy(None).draw(4, _context(), DRAWS.at(3)))
    assert not torch.equal(first, policy(None).draw(4, _context(), DRAWS.at(4)))


@pytest.mark.parametrize("policy", POLICIES)
def test_global_random_state_is_left_alone(policy: type[TimestepPolicy]) -> None:
    before = torch.get_rng_state()
    policy(None).draw(4, _context(), DRAWS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_remembered(policy: type[TimestepPolicy]) -> None:
    instance = policy(None)
    instance.draw(2, _context(), DRAWS)
    assert instance.state_dict() == {}


def test_uniform_is_uniform() -> None:
    times = UniformTimesteps(None).draw(4000, _context(0.3, 0.8), DRAWS)
    assert stats.kstest(times.numpy(), stats.uniform(0.3, 0.5).cdf).pvalue > 0.01


def test_uniform_takes_any_count_and_a_range_of_one_point() -> None:
    UniformTimesteps(None).check(_context(), 10_000)
    assert UniformTimesteps(None).draw(3, _context(0.7, 0.7), DRAWS).tolist() == [0.7] * 3


@given(st.floats(0, 1), st.floats(0, 1))
def test_uniform_stays_inside_at_the_largest_draw(one: float, other: float) -> None:
    class Largest(Draws):
        def uniform(self, count: int) -> torch.Tensor:
            return torch.full((count,), math.nextafter(1, 0), dtype=torch.float64)

    t_min, t_max = sorted((one, other))
    assert t_min <= UniformTimesteps(None).draw(1, _context(t_min, t_max), Largest(0)).item() <= t_max


def test_sampler_steps_are_the_samplers_own_and_all_different() -> None:
    context = _context()
    inside = {sigma for sigma in context.sigmas.tolist() if 0.5625 <= sigma <= 1}
    assert len(inside) == 7
    for iteration in range(30):
        times = SamplerSteps(None).draw(4, context, DRAWS.at(iteration)).tolist()
        assert len(set(times)) == 4
        assert set(times) <= inside


def test_sampler_steps_draw_every_order_equally_often() -> None:
    context = _context(0.9)  # 0.9997, 0.9639, 0.9227
    available = context.sigmas[context.sigmas >= 0.9].tolist()
    orders = list(permutations(available, 2))
    seen = [tuple(SamplerSteps(None).draw(2, context, DRAWS.at(i)).tolist()) for i in range(1200)]
    assert stats.chisquare([seen.count(order) for order in orders]).pvalue > 0.01


def test_sampler_steps_include_both_ends_but_never_zero() -> None:
    sigmas = FlowEuler(None).sigmas(5, Schedule(1.0))
    context = TimestepContext(sigmas=sigmas, t_min=0.0, t_max=1.0, shift=1.0, iteration=1, iterations=1)
    times = SamplerSteps(None).draw(5, context, DRAWS)
    assert times.sort(descending=True).values.tolist() == sigmas[:-1].tolist()
    closed = TimestepContext(
        sigmas=sigmas, t_min=float(sigmas[3]), t_max=float(sigmas[1]), shift=1.0, iteration=1, iterations=1
    )
    SamplerSteps(None).check(closed, 3)


@pytest.mark.parametrize(
    ("count", "context", "messages"),
    [
        (
            4,
            _context(0.9),
            [
                "4 times cannot",
                "only 3 of the sampler's 10",
                "(0.9997, 0.9639, 0.9227)",
                "count to 3",
                "t_min to 0.8746",
            ],
        ),
        (1, _context(0.9, 0.91), ["only 0", "[0.9000, 0.9100]", "(none)", "Either lower timesteps.t_min to 0.8746"]),
        (11, _context(0.0), ["only 10", "lower timesteps.count to 10", "raise rollout.steps", "only 10 times"]),
        (3, _context(0.0, 0.43), ["only 2", "(0.4283, 0.2498)", "timesteps.t_max", "only 2 times"]),
    ],
)
@pytest.mark.parametrize("phase", ["check", "draw"])
def test_too_few_steps_are_refused_with_the_way_out(
    phase: str, count: int, context: TimestepContext, messages: list[str]
) -> None:
    policy = SamplerSteps(None)
    with pytest.raises(UserError) as caught:
        policy.check(context, count) if phase == "check" else policy.draw(count, context, DRAWS)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("count", range(1, 11))
def test_the_suggested_t_min_works_as_printed(count: int) -> None:
    with pytest.raises(UserError) as caught:
        SamplerSteps(None).check(_context(0.99999), count)
    suggested = float(str(caught.value).split("timesteps.t_min to ")[1].split(";")[0])
    SamplerSteps(None).check(_context(suggested), count)
    with pytest.raises(UserError):
        SamplerSteps(None).check(_context(suggested + 2e-4), count)

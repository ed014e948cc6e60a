"""Timestep policies: ranges, distribution, keys, and what is said when there are too few steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from dgpo_core.builtin.options import StratifiedOptions
from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.builtin.timesteps import SamplerSteps, StratifiedTimesteps, UniformTimesteps
from dgpo_core.contracts import TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.types import Schedule

Make = Callable[[], TimestepPolicy]


def stratified(power: float = 0.0) -> StratifiedTimesteps:
    return StratifiedTimesteps(StratifiedOptions(power=power))


POLICIES: list[Make] = [
    partial(UniformTimesteps, None),
    partial(SamplerSteps, None),
    stratified,
    partial(stratified, 2),
]
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
def test_draws_count_times_inside_the_range(policy: Make) -> None:
    context = _context(0.6, 0.97)
    for iteration in range(50):
        times = policy().draw(4, context, DRAWS.at(iteration))
        assert times.shape == (4,)
        assert times.dtype == torch.float64
        assert times.device.type == "cpu"
        assert ((times >= 0.6) & (times <= 0.97)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_key_alone_decides(policy: Make) -> None:
    first = policy().draw(4, _context(), DRAWS.at(3))
    torch.manual_seed(5)
    assert torch.equal(first, policy().draw(4, _context(), DRAWS.at(3)))
    assert not torch.equal(first, policy().draw(4, _context(), DRAWS.at(4)))


@pytest.mark.parametrize("policy", POLICIES)
def test_global_random_state_is_left_alone(policy: Make) -> None:
    before = torch.get_rng_state()
    policy().draw(4, _context(), DRAWS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_remembered(policy: Make) -> None:
    instance = policy()
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


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_each_stratum_has_one_time(power: float) -> None:
    """The distribution function, integrated numerically from sigma^power, falls into each of 1/T to T/T once."""
    context = _context(0.3, 0.8)
    total = integrate.quad(lambda x: x**power, 0.3, 0.8)[0]
    for count in (1, 2, 4, 7):
        places = set()
        for iteration in range(20):
            times = stratified(power).draw(count, context, DRAWS.at(iteration)).tolist()
            below = [integrate.quad(lambda x: x**power, 0.3, time)[0] / total for time in times]
            assert sorted(int(part * count) for part in below) == list(range(count))
            places.add(int(below[0] * count))
        assert len(places) > min(count, 2) - 1, "the order is random"


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_each_time_alone_has_the_density(power: float) -> None:
    context = _context(0.3, 0.8)
    drawn = torch.cat([stratified(power).draw(4, context, DRAWS.at(i)) for i in range(1000)]).view(1000, 4)

    def below(x: np.ndarray) -> np.ndarray:
        return (x ** (power + 1) - 0.3 ** (power + 1)) / (0.8 ** (power + 1) - 0.3 ** (power + 1))

    for place in range(4):
        assert stats.kstest(drawn[:, place].numpy(), below).pvalue > 0.01


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_density_is_a_weight(power: float) -> None:
    """The mean of f over times drawn by sigma^power is that of w f over uniform ones, w = sigma^power over its mean."""
    low, high = 0.3, 0.8

    def f(x: float) -> float:
        return math.sin(7 * x) + x

    mean = integrate.quad(lambda x: x**power, low, high)[0] / (high - low)
    weighted = integrate.quad(lambda x: x**power / mean * f(x), low, high)[0] / (high - low)
    times = stratified(power).draw(20_000, _context(low, high), DRAWS)  # strata of 1/20,000: a fine quadrature
    assert np.mean([f(time) for time in times.tolist()]) == pytest.approx(weighted, abs=1e-6)


def test_strata_lower_the_variance_of_a_loss() -> None:
    """For f(x) = x the variance of the mean of T uniform times is 1/(12 T), of T stratified ones 1/(12 T^3)."""
    context, count = _context(0.0, 1.0), 4
    found = {
        name: np.var([float(policy.draw(count, context, DRAWS.at(i)).mean()) for i in range(4000)])
        for name, policy in (("uniform", UniformTimesteps(None)), ("stratified", stratified()))
    }
    assert found["uniform"] == pytest.approx(1 / (12 * count), rel=0.1)
    assert found["stratified"] == pytest.approx(1 / (12 * count**3), rel=0.1)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0, 2.0, 9.0]), st.floats(0, 1, exclude_max=True))
def test_strata_stay_inside(one: float, other: float, power: float, last: float) -> None:
    class Given(Draws):
        def uniform(self, count: int) -> torch.Tensor:
            return torch.full((count,), last, dtype=torch.float64)

    t_min, t_max = sorted((one, other))
    times = stratified(power).draw(3, _context(t_min, t_max), Given(0))
    assert ((times >= t_min) & (times <= t_max)).all()


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

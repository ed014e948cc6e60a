"""Samplers against diffusers' schedulers and against the closed form of a Gaussian's flow."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.contracts import Sampler
from dgpo_core.errors import UserError
from dgpo_core.types import Schedule

SAMPLERS: list[type[Sampler]] = [FlowEuler, FlowDPMSolverPP]


def _diffusers_scheduler(sampler: type[Sampler], shift: float) -> Any:
    if sampler is FlowEuler:
        return FlowMatchEulerDiscreteScheduler(shift=shift, num_train_timesteps=1000)
    return DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        lower_order_final=True,
        final_sigmas_type="zero",
    )


def _toy_velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """Nonlinear in the state and in time."""
    return torch.tanh(1.7 * x + sigma) + 0.4 * torch.sin(3 * sigma) * x.flip(-1)


def _noise(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 14, 15, 40])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_agrees_with_diffusers_step_for_step(sampler: type[Sampler], steps: int, shift: float) -> None:
    scheduler = _diffusers_scheduler(sampler, shift)
    scheduler.set_timesteps(steps)
    ours = sampler(None).sample(_toy_velocity, _noise(), steps=steps, schedule=Schedule(shift), keep_path=True)
    assert ours.path is not None
    torch.testing.assert_close(ours.path.sigmas.float(), scheduler.sigmas, rtol=0, atol=1e-6)

    x = _noise()
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(_toy_velocity(x, scheduler.sigmas[i]), timestep, x).prev_sample
        torch.testing.assert_close(ours.path.states[i + 1], x, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.x0, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 14, 40])
def test_pipelines_round_times_down(steps: int) -> None:
    """A diffusers pipeline with DPM-Solver gives the model 1000 sigma without its fraction; what that does."""
    scheduler = _diffusers_scheduler(FlowDPMSolverPP, 3.0)
    scheduler.set_timesteps(steps)
    sigmas = FlowDPMSolverPP(None).sigmas(steps, Schedule(3.0))[:-1]
    assert torch.equal(scheduler.timesteps, (1000 * sigmas).floor().long())
    x = _noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(_toy_velocity(x, timestep / 1000), timestep, x).prev_sample
    ours = FlowDPMSolverPP(None).sample(_toy_velocity, _noise(), steps=steps, schedule=Schedule(3.0))
    assert 1e-5 < float((ours.x0 - x).abs().max()) < 5e-3


def test_euler_pipelines_do_not_round_times() -> None:
    scheduler = _diffusers_scheduler(FlowEuler, 3.0)
    scheduler.set_timesteps(10)
    sigmas = FlowEuler(None).sigmas(10, Schedule(3.0))[:-1]
    torch.testing.assert_close(scheduler.timesteps.double() / 1000, sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sigmas_descend_from_noise_to_zero(sampler: type[Sampler], steps: int, shift: float) -> None:
    sigmas = sampler(None).sigmas(steps, Schedule(shift))
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas.device.type == "cpu"
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    first = 1.0 if sampler is FlowEuler else shift * 0.999 / (1 + (shift - 1) * 0.999)
    assert sigmas[0].item() == pytest.approx(first, abs=1e-12)


MEAN, STD = 0.7, 0.4
"""Gaussian data: its flow has a closed form."""


def _gaussian_velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """E[noise - x0 | x_sigma = x] for x0 ~ N(MEAN, STD^2)."""
    sigma = sigma.double()
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    centered = x - (1 - sigma) * MEAN
    return (sigma - (1 - sigma) * STD**2) / variance * centered - MEAN


def _gaussian_flow(x: Tensor, start: float, end: float) -> Tensor:
    """The exact state at `end` of the ODE that is at x at `start`: the quantile of x is conserved."""

    def std(sigma: float) -> float:
        return math.sqrt((1 - sigma) ** 2 * STD**2 + sigma**2)

    return (1 - end) * MEAN + std(end) / std(start) * (x - (1 - start) * MEAN)


def _errors(sampler: type[Sampler], steps: int) -> tuple[float, float]:
    """Largest error after three quarters of the steps, and at the end."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    result = sampler(None).sample(_gaussian_velocity, noise, steps=steps, schedule=Schedule(1.0), keep_path=True)
    assert result.path is not None
    sigmas, inside = result.path.sigmas.tolist(), 3 * steps // 4
    inner = result.path.states[inside] - _gaussian_flow(noise, sigmas[0], sigmas[inside])
    end = result.x0 - _gaussian_flow(noise, sigmas[0], 0.0)
    return inner.abs().max().item(), end.abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(FlowEuler, 1), (FlowDPMSolverPP, 2)])
def test_order_of_convergence(sampler: type[Sampler], order: int) -> None:
    """Away from sigma = 0, where steps in lambda do not get smaller as there are more of them."""
    errors = [_errors(sampler, steps)[0] for steps in (20, 40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_second_order_is_several_times_nearer_than_euler(steps: int) -> None:
    for second, first in zip(_errors(FlowDPMSolverPP, steps), _errors(FlowEuler, steps), strict=True):
        assert second < first / 3


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_point_of_data_is_reached_exactly(sampler: type[Sampler], steps: int) -> None:
    """Data in one point: x0 is the same from everywhere, and the paths are straight."""
    point = torch.full((3, 4, 6, 5), -1.3)
    result = sampler(None).sample(lambda x, sigma: (x - point) / sigma, _noise(), steps=steps, schedule=Schedule(3.0))
    torch.testing.assert_close(result.x0, point, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_dpmpp_ends_in_the_denoised_estimate(steps: int) -> None:
    result = FlowDPMSolverPP(None).sample(_toy_velocity, _noise(), steps=steps, schedule=Schedule(3.0), keep_path=True)
    assert result.path is not None
    last, sigma = result.path.states[-2], result.path.sigmas[-2]
    assert torch.equal(result.x0, last - sigma * _toy_velocity(last, sigma.float()))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_path_is_kept_only_when_asked_and_changes_nothing(sampler: type[Sampler]) -> None:
    plain = sampler(None).sample(_toy_velocity, _noise(), steps=4, schedule=Schedule(3.0))
    kept = sampler(None).sample(_toy_velocity, _noise(), steps=4, schedule=Schedule(3.0), keep_path=True)
    assert plain.path is None
    assert kept.path is not None
    assert torch.equal(plain.x0, kept.x0)
    assert kept.path.states.shape == (5, 3, 4, 6, 5)
    assert torch.equal(kept.path.states[0], _noise())
    assert torch.equal(kept.path.states[-1], kept.x0)
    assert torch.equal(kept.path.sigmas, sampler(None).sigmas(4, Schedule(3.0)))
    assert kept.path.log_probs is None
    assert sampler.deterministic


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_do_not_depend_on_their_batch(sampler: type[Sampler]) -> None:
    whole = sampler(None).sample(_toy_velocity, _noise(), steps=6, schedule=Schedule(3.0)).x0
    alone = [sampler(None).sample(_toy_velocity, row[None], steps=6, schedule=Schedule(3.0)).x0 for row in _noise()]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_left_as_it_was(sampler: type[Sampler]) -> None:
    noise = _noise()
    sampler(None).sample(_toy_velocity, noise, steps=3, schedule=Schedule(3.0))
    assert torch.equal(noise, _noise())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_waits_for_the_device(sampler: type[Sampler]) -> None:
    """The meta device holds no numbers: whatever reads one back from it fails."""
    seen: list[Tensor] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return torch.tanh(x) * sigma

    result = sampler(None).sample(
        velocity, torch.empty(2, 4, device="meta"), steps=6, schedule=Schedule(3.0), keep_path=True
    )
    assert result.x0.device.type == "meta"
    assert [(sigma.shape, sigma.dtype, sigma.device.type) for sigma in seen] == [((), torch.float32, "meta")] * 6
    assert len({sigma.untyped_storage()._cdata for sigma in seen}) == 1  # views of a single copy


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_velocity_sees_each_sigma_but_the_last(sampler: type[Sampler]) -> None:
    seen: list[float] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma.item())
        return x

    sampler(None).sample(velocity, _noise(), steps=5, schedule=Schedule(3.0))
    assert seen == pytest.approx(sampler(None).sigmas(5, Schedule(3.0))[:-1].tolist(), abs=1e-7)


def test_dpmpp_stays_finite_where_a_shift_rounds_the_first_time_to_one() -> None:
    """lambda is -inf there."""
    sampler = FlowDPMSolverPP(None)
    assert sampler.sigmas(4, Schedule(1e14))[0] == 1
    assert sampler.sample(_toy_velocity, _noise(), steps=4, schedule=Schedule(1e14)).x0.isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("steps", "shift", "message"),
    [
        (0, 3.0, "rollout.steps: must be at least 1, got 0"),
        (10, 0.0, "rollout.shift: must be positive, got 0"),
        (10, -1.0, "rollout.shift: must be positive, got -1"),
        (10, math.inf, "rollout.shift: must be positive, got inf"),
        (10, math.nan, "rollout.shift: must be positive, got nan"),
        (10, 1e20, r"rollout.shift: with 1e\+20 the sampler's times are no longer distinct"),
    ],
)
def test_numbers_that_give_no_schedule_are_refused(
    sampler: type[Sampler], steps: int, shift: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sampler(None).sigmas(steps, Schedule(shift))

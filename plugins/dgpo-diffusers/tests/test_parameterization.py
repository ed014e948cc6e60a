"""Networks of variance-preserving models in flow coordinates, against diffusers' schedulers in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import interpolate, vp_from_flow
from dgpo_diffusers.parameterization import EpsilonPrediction, FlowPrediction, VPrediction

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
KINDS = {"epsilon": EpsilonPrediction, "v_prediction": VPrediction}


def network(x_vp: Tensor, t: Tensor) -> Tensor:
    """Bends in state and time."""
    return torch.tanh(1.3 * x_vp) + 0.2 * x_vp * torch.sin(t.to(x_vp.dtype) / 150)


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_flow(p: EpsilonPrediction, steps: int) -> tuple[Tensor, list[float]]:
    """Euler steps of the velocity; the network's times are told."""
    seen: list[float] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.expand(len(x))
        exact = torch.tensor(min(times, key=lambda one: abs(one - float(sigma[0]))), dtype=torch.float64).expand(len(x))
        t = p.time(sigma)
        seen.append(float(t[0]))
        return p.velocity(network(p.state(x, exact), t[0]), x, exact)

    schedule = p.schedule(steps)
    times = FlowEuler(None).sigmas(steps, schedule).tolist()
    start = p.start(times[0])
    return FlowEuler(None).sample(velocity, start * noise(), steps=steps, schedule=schedule).x0, seen


def scheduler(kind: str, spacing: str, **more: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(prediction_type=kind, timestep_spacing=spacing, **(SDXL | more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [4, 30])
def test_a_rollout_is_euler_discretes(kind: str, spacing: str, steps: int) -> None:
    reference = scheduler(kind, spacing)
    reference.set_timesteps(steps)
    p = KINDS[kind](reference.config)
    sigmas = FlowEuler(None).sigmas(steps, p.schedule(steps))
    ratios = sigmas / (1 - sigmas)
    torch.testing.assert_close(ratios, reference.sigmas.double(), rtol=3e-6, atol=1e-6)
    assert p.start(float(sigmas[0])) == pytest.approx(float(reference.init_noise_sigma / (1 + ratios[0])), rel=1e-6)
    found, seen = by_flow(p, steps)
    if spacing == "linspace":  # between places the two interpolations differ
        np.testing.assert_allclose(seen, reference.timesteps.tolist(), atol=0.2)
    else:
        assert seen == reference.timesteps.tolist()
    reference.sigmas = ratios  # in float64, to tell arithmetic from the float32 of its table
    x = noise() * reference.init_noise_sigma
    for t, own in zip(reference.timesteps, seen, strict=True):
        output = network(reference.scale_model_input(x, t), torch.tensor(own))
        x = _step(reference, output, t, x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-11)


def _step(reference: EulerDiscreteScheduler, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Its step, which converts to float32 and back, in float64."""
    sigma, after = reference.sigmas[reference.step_index], reference.sigmas[reference.step_index + 1]
    if reference.config.prediction_type == "epsilon":
        x0 = x - sigma * output
    else:
        x0 = output * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
    rounded = reference.step(output, t, x).prev_sample
    exact: Tensor = x + (after - sigma) * (x - x0) / sigma
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-4)
    return exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_is_ddims(kind: str) -> None:
    """x_vp of DDIM (eta 0, ending at alpha 1) is the flow's state over sqrt((1 - sigma)^2 + sigma^2)."""
    how = SDXL | {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "leading"}
    reference = DDIMScheduler(prediction_type=kind, **how)
    reference.set_timesteps(10)
    p = KINDS[kind](reference.config)
    found, seen = by_flow(p, 10)
    assert seen == reference.timesteps.tolist()
    reference.alphas_cumprod = torch.tensor(np.exp(p._log_alphas))
    reference.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    # Its steps go back by 100 places; the flow's last one goes to 0, as DDIM's does.
    x = noise()
    for t in reference.timesteps:
        x = reference.step(network(x, t), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-11)


def test_the_range_of_sdxl() -> None:
    p = EpsilonPrediction(scheduler("epsilon", "leading").config)
    assert p.sigma_range == pytest.approx((0.02834, 0.93596), abs=5e-6)
    first = p.schedule(30).first
    assert (first, p.start(first)) == (pytest.approx(0.91985, abs=5e-6), pytest.approx(0.92334, abs=5e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_places_of_the_table_are_found_exactly_and_others_nearly(kind: str) -> None:
    reference = scheduler(kind, "leading")
    p = KINDS[kind](reference.config)
    alphas = reference.alphas_cumprod.double()
    sigma = (1 - alphas).sqrt() / (alphas.sqrt() + (1 - alphas).sqrt())
    assert torch.equal(p.time(sigma.float()), torch.arange(1000.0))
    # Judged on held-out places: a table of every second one, in which those between are t + 1/2.
    coarse = KINDS[kind]({"trained_betas": (1 - alphas[1::2] / torch.cat([torch.ones(1), alphas[1:-1:2]])).tolist()})
    found = 2 * coarse.time(sigma[2:-1:2]).double() + 1
    wanted = torch.arange(2.0, 999, 2, dtype=torch.float64)
    assert float((found - wanted).abs().max()) < 0.2
    assert float((found - wanted)[25:].abs().max()) < 6e-3  # a whole one is snapped to within 2e-3 of it
    assert p.time(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.0]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_velocity_are_the_networks(kind: str) -> None:
    p = KINDS[kind](scheduler(kind, "leading").config)
    low, high = p.sigma_range
    sigma = low + (high - low) * torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0, eps = noise(32).chunk(2)
    x = interpolate(x0, eps, sigma)
    alpha, s, _ = (one.view(-1, 1, 1, 1) for one in vp_from_flow(sigma))
    torch.testing.assert_close(p.state(x, sigma), alpha * x0 + s * eps, rtol=0, atol=1e-13)
    wanted = eps if kind == "epsilon" else alpha * eps - s * x0
    output = wanted + 0.1 * torch.sin(3 * x)
    weight = p.loss_weight(sigma)
    assert weight is not None
    error = (p.velocity(output, x, sigma) - (eps - x0)).square().mean((1, 2, 3))
    torch.testing.assert_close(weight * error, (output - wanted).square().mean((1, 2, 3)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables(beta_schedule: str, zero: bool) -> None:
    how = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero, "timestep_spacing": "trailing"}
    for reference in (DDIMScheduler(**how), CogVideoXDDIMScheduler(snr_shift_scale=2.0, **how)):
        p = VPrediction(reference.config)
        expected = reference.alphas_cumprod.double().clamp(min=2.0**-24 if zero else 0.0)
        torch.testing.assert_close(torch.tensor(np.exp(p._log_alphas)), expected, rtol=2e-3, atol=2e-7)
        assert (p.sigma_range[1] == 1.0) == zero


def test_a_zero_terminal_snr() -> None:
    """v is defined where the state is all noise; the noise alone means nothing there."""
    reference = scheduler("v_prediction", "trailing", rescale_betas_zero_snr=True)
    v = VPrediction(reference.config)
    assert v.sigma_range[1] == 1.0
    assert v.schedule(4).first == pytest.approx(4096 / 4097)
    x, one = noise(), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(v.velocity(2 * x, x, one), 3 * x)
    assert v.time(one).tolist() == [999.0] * 3
    assert EpsilonPrediction(reference.config).sigma_range[1] == pytest.approx(4096 / 4097)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("ends", [{}, {"sigma_min": 0.1, "sigma_max": 8.0}])
def test_the_times_of_karras(spacing: str, ends: dict[str, float]) -> None:
    reference = scheduler("epsilon", spacing, use_karras_sigmas=True, **ends)
    reference.set_timesteps(9)
    p = EpsilonPrediction(reference.config)
    sigmas = FlowEuler(None).sigmas(9, p.schedule(9))
    torch.testing.assert_close(sigmas / (1 - sigmas), reference.sigmas.double(), rtol=2e-5, atol=2e-6)
    # That scheduler rounds the places, and reads them off log S instead of log alpha^2.
    torch.testing.assert_close(p.time(sigmas[:-1]), reference.timesteps.float(), rtol=0, atol=0.6)


def test_more_steps_than_places() -> None:
    p = EpsilonPrediction(SDXL | {"num_train_timesteps": 20})
    with pytest.raises(UserError, match=r"rollout\.steps: 21 given, this model has 20 times; at most 20"):
        p.schedule(21)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "not 'sigmoid'"),
        ({"timestep_spacing": "random"}, "not 'random'"),
        ({"trained_betas": []}, "two or more"),
        ({"trained_betas": [0.1, math.nan]}, "from 0 to 1"),
        ({"beta_end": 2}, "from 0 to 1"),
        ({"trained_betas": [0.1, 0.0, 0.1]}, "grows from place to place"),
        ({"num_train_timesteps": 0}, "two or more"),
        ({"num_train_timesteps": 100_000}, "grows from place to place"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'; allowed is a whole number"),
        ({"steps_offset": None}, "steps_offset is None"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas is True; allowed is false"),
        ({"use_karras_sigmas": True, "sigma_min": -1}, "numbers above 0"),
    ],
)
def test_tables_that_are_not_known(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonPrediction(config)


def test_flow_models_are_left_alone() -> None:
    p, x, sigma = FlowPrediction(), noise(), torch.full((3,), 0.25)
    assert p.state(x, sigma) is p.velocity(x, x, sigma) is x
    assert p.time(sigma) is sigma
    assert (p.start(0.5), p.loss_weight(sigma), p.sigma_range) == (1.0, None, (0.0, 1.0))
    assert math.isclose(EpsilonPrediction(SDXL).start(0.5), math.sqrt(0.5))

"""Flow mathematics against closed forms and float64 round trips."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo_core.flow.velocity import (
    denoised,
    flow_from_vp,
    gaussian_log_prob,
    guided_velocity,
    interpolate,
    shift_sigma,
    unshift_sigma,
    velocity_from_epsilon,
    velocity_from_x0,
    velocity_target,
    vp_from_flow,
)
from dgpo_core.types import Conditioning

unit = st.floats(0, 1)
shifts = st.floats(0.05, 20)


def _pair(batch: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, batch, 4, 3, 2, generator=generator, dtype=torch.float64)
    return x0, noise


@pytest.mark.parametrize(("sigma", "expected"), [(0.3, 0.5625), (0.4, 2 / 3), (0.6, 9 / 11), (0.0, 0.0), (1.0, 1.0)])
def test_shift_gives_the_published_values(sigma: float, expected: float) -> None:
    assert shift_sigma(sigma, 3.0) == pytest.approx(expected, abs=1e-12)
    assert shift_sigma(torch.tensor(sigma, dtype=torch.float64), 3.0).item() == pytest.approx(expected, abs=1e-12)


@given(unit, shifts)
def test_shift_round_trip(sigma: float, shift: float) -> None:
    assert unshift_sigma(shift_sigma(sigma, shift), shift) == pytest.approx(sigma, abs=1e-12)
    assert 0 <= shift_sigma(sigma, shift) <= 1 + 1e-15
    assert unshift_sigma(sigma, shift) == pytest.approx(shift_sigma(sigma, 1 / shift), abs=1e-12)


@given(unit, shifts, shifts)
def test_shifts_multiply(sigma: float, k: float, m: float) -> None:
    assert shift_sigma(shift_sigma(sigma, k), m) == pytest.approx(shift_sigma(sigma, k * m), abs=1e-12)


def test_interpolate_is_the_straight_line_of_each_sample() -> None:
    x0, noise = _pair()
    sigma = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    x = interpolate(x0, noise, sigma)
    for i, s in enumerate(sigma.tolist()):
        torch.testing.assert_close(x[i], x0[i] * (1 - s) + noise[i] * s, rtol=0, atol=1e-15)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[-1], noise[-1])


def test_one_sigma_serves_all_samples() -> None:
    x0, noise = _pair()
    sigma = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(interpolate(x0, noise, sigma), interpolate(x0, noise, sigma.expand(5)))


def test_velocity_is_the_slope_of_the_path() -> None:
    x0, noise = _pair()
    before, after = (torch.full((5,), value, dtype=torch.float64) for value in (0.25, 0.75))
    slope = (interpolate(x0, noise, after) - interpolate(x0, noise, before)) / 0.5
    torch.testing.assert_close(velocity_target(x0, noise), slope, rtol=0, atol=1e-14)


@pytest.mark.parametrize("per_sample", [True, False])
def test_denoised_recovers_x0_from_the_true_velocity(per_sample: bool) -> None:
    x0, noise = _pair()
    sigma = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64) if per_sample else torch.tensor(0.7)
    x = interpolate(x0, noise, sigma)
    torch.testing.assert_close(denoised(x, noise - x0, sigma), x0, rtol=0, atol=1e-12)


def test_denoised_takes_a_number() -> None:
    x0, noise = _pair()
    x = interpolate(x0, noise, torch.tensor(0.7, dtype=torch.float64))
    torch.testing.assert_close(denoised(x, noise - x0, 0.7), x0, rtol=0, atol=1e-12)
    assert torch.equal(denoised(x, noise, 1), x - noise)


@pytest.mark.parametrize("sigma", [torch.tensor(0.5, dtype=torch.float64), torch.full((5,), 0.5, dtype=torch.float64)])
def test_a_float64_sigma_leaves_float32_states_float32(sigma: Tensor) -> None:
    x0, noise = (tensor.float() for tensor in _pair())
    x = interpolate(x0, noise, sigma)
    assert x.dtype == denoised(x, noise, sigma).dtype == velocity_from_epsilon(x, noise, sigma).dtype == torch.float32


class Backbone:
    """A velocity that depends on everything it is given, and counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.batches.append(len(x_sigma))
        assert sigma.shape == (len(x_sigma),)
        assert len(conditioning) == len(x_sigma)
        shape = (-1, 1, 1, 1)
        c = conditioning.tensors["c"].reshape(shape)
        return torch.tanh(x_sigma + c) * sigma.reshape(shape)

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        return unconditional + guidance * (conditional - unconditional)


def _conditioning(rows: int, seed: int = 1) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning({"c": torch.randn(rows, 1, generator=generator, dtype=torch.float64)})


@pytest.mark.parametrize("one_row", [True, False])
@pytest.mark.parametrize("one_sigma", [True, False])
def test_guidance_is_the_formula_in_one_batch(one_row: bool, one_sigma: bool) -> None:
    x, _ = _pair()
    sigma = torch.tensor(0.6, dtype=torch.float64) if one_sigma else torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    conditional, unconditional = _conditioning(5), _conditioning(1 if one_row else 5, seed=2)
    backbone = Backbone()
    guided = guided_velocity(backbone, x, sigma, conditional, unconditional, 4.5)
    assert backbone.batches == [10]
    for i in range(5):
        s = sigma if one_sigma else sigma[i]
        v_c = torch.tanh(x[i] + conditional.tensors["c"][i]) * s
        v_u = torch.tanh(x[i] + unconditional.tensors["c"][0 if one_row else i]) * s
        torch.testing.assert_close(guided[i], v_u + 4.5 * (v_c - v_u), rtol=0, atol=1e-14)


def test_guidance_one_is_exactly_one_plain_call() -> None:
    x, _ = _pair()
    sigma = torch.full((5,), 0.6, dtype=torch.float64)
    backbone = Backbone()
    plain = Backbone().velocity(x, sigma, _conditioning(5))
    assert torch.equal(guided_velocity(backbone, x, sigma, _conditioning(5), _conditioning(1, seed=2), 1.0), plain)
    assert torch.equal(guided_velocity(backbone, x, sigma, _conditioning(5), None, 1.0), plain)
    assert backbone.batches == [5, 5]


def test_guidance_without_unconditional_is_refused() -> None:
    x, _ = _pair()
    with pytest.raises(ValueError, match=r"guidance 4\.5 requires unconditional"):
        guided_velocity(Backbone(), x, torch.ones(5), _conditioning(5), None, 4.5)


@pytest.mark.parametrize(("conditional", "unconditional"), [(5, 3), (4, 5), (1, 1)])
def test_guidance_with_rows_that_do_not_fit_is_refused(conditional: int, unconditional: int) -> None:
    x, _ = _pair()
    with pytest.raises(ValueError, match=f"expected 5 rows .* got {conditional} and"):
        guided_velocity(Backbone(), x, torch.ones(5), _conditioning(conditional), _conditioning(unconditional), 2.0)


@given(st.floats(0, 1))
def test_vp_time_has_unit_variance_and_equal_signal_to_noise(time: float) -> None:
    sigma = torch.tensor(time, dtype=torch.float64)
    alpha, sigma_vp, scale = vp_from_flow(sigma)
    assert (alpha**2 + sigma_vp**2).item() == pytest.approx(1, abs=1e-14)
    assert (alpha * sigma).item() == pytest.approx(((1 - sigma) * sigma_vp).item(), abs=1e-15)
    assert 1 - 1e-15 <= scale.item() <= 2**0.5 + 1e-15
    assert flow_from_vp(alpha, sigma_vp).item() == pytest.approx(time, abs=1e-14)


@given(st.floats(0, torch.pi / 2))
def test_flow_time_of_a_vp_model_round_trip(angle: float) -> None:
    alpha, sigma_vp = torch.tensor(angle, dtype=torch.float64).cos(), torch.tensor(angle, dtype=torch.float64).sin()
    back_alpha, back_sigma, _ = vp_from_flow(flow_from_vp(alpha, sigma_vp))
    assert back_alpha.item() == pytest.approx(alpha.item(), abs=1e-14)
    assert back_sigma.item() == pytest.approx(sigma_vp.item(), abs=1e-14)


def test_vp_state_is_the_rescaled_flow_state() -> None:
    x0, noise = _pair()
    sigma = torch.linspace(0, 1, 5, dtype=torch.float64)
    alpha, sigma_vp, scale = (value.reshape(-1, 1, 1, 1) for value in vp_from_flow(sigma))
    torch.testing.assert_close(scale * interpolate(x0, noise, sigma), alpha * x0 + sigma_vp * noise, rtol=0, atol=1e-14)


def test_velocity_from_the_true_noise_and_data() -> None:
    x0, noise = _pair()
    sigma = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    x = interpolate(x0, noise, sigma)
    torch.testing.assert_close(velocity_from_epsilon(x, noise, sigma), noise - x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(velocity_from_x0(x, x0, sigma), noise - x0, rtol=0, atol=1e-12)


def test_velocity_from_x0_inverts_denoised() -> None:
    x, prediction = _pair(seed=3)
    sigma = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    back = velocity_from_x0(x, denoised(x, prediction, sigma), sigma)
    torch.testing.assert_close(back, prediction, rtol=0, atol=1e-12)


def test_ddim_in_vp_time_is_euler_in_flow_time() -> None:
    """A noise-prediction model stepped by DDIM (arXiv 2010.02502, eq. 12) and its converted velocity stepped by Euler
    pass through the same states, up to the rescaling."""
    x0, noise = _pair(seed=4)

    def epsilon(x_vp: Tensor, alpha: Tensor) -> Tensor:
        return torch.tanh(x_vp) * alpha + 0.3 * x_vp

    times = torch.tensor([0.95, 0.8, 0.5, 0.2, 0.05], dtype=torch.float64)
    x = interpolate(x0, noise, times[0])
    alpha, sigma_vp, scale = vp_from_flow(times[0])
    x_vp = scale * x
    for s, t in pairwise(times):
        prediction = epsilon(x_vp, alpha)
        next_alpha, next_sigma, _ = vp_from_flow(t)
        x_vp = next_alpha * (x_vp - sigma_vp * prediction) / alpha + next_sigma * prediction

        own_alpha, _, own_scale = vp_from_flow(s)
        x = x + (t - s) * velocity_from_epsilon(x, epsilon(own_scale * x, own_alpha), s)
        alpha, sigma_vp = next_alpha, next_sigma
        torch.testing.assert_close(vp_from_flow(t)[2] * x, x_vp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("std", [1e-3, 0.3, 4.0])
def test_log_probability_of_a_gaussian(std: float) -> None:
    """Mean over the latent of torch's own log-density, float64."""
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=generator)
    wanted = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), wanted, rtol=1e-13, atol=0)

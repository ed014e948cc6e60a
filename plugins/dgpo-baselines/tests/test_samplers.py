"""Random samplers against float64 Gaussians and against a flow with a closed-form solution."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from dgpo_baselines.options import FlowCpsOptions, FlowSdeOptions
from dgpo_baselines.samplers import FlowCps, FlowSde, RandomSampler
from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws
from dgpo_core.types import Schedule
from dgpo_kit.contracts import check_sampler

SHAPE = (3, 4, 5)


def sde(**options: Any) -> FlowSde:
    return FlowSde(FlowSdeOptions(**options))


def cps(**options: Any) -> FlowCps:
    return FlowCps(FlowCpsOptions(**options))


SAMPLERS: dict[str, RandomSampler] = {
    "sde": sde(),
    "sde, loud": sde(noise=1.3),
    "sde, window": sde(random_from=0.95, random_to=0.5),
    "cps": cps(),
    "cps, all fresh": cps(eta=1.0),
    "cps, window": cps(random_from=0.95, random_to=0.5),
}
each = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def keys(count: int) -> list[Draws]:
    return [Draws(5).at("sample", i) for i in range(count)]


def noise(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def bent(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(1.7 * x + sigma) + 0.4 * torch.sin(3 * sigma) * x.flip(-1)


@each
def test_contract(sampler: RandomSampler) -> None:
    check_sampler(sampler, steps=(1, 2, 5, 9))


@each
def test_log_probabilities_are_those_of_a_gaussian(sampler: RandomSampler) -> None:
    """Against scipy's density in float64, with mean and std written from the papers."""
    result = sampler.sample(bent, noise(3), steps=7, schedule=Schedule(3.0), draws=keys(3), keep_path=True)
    assert result.path is not None
    assert result.path.log_probs is not None
    for k, (sigma, after) in enumerate(pairwise(result.path.sigmas.tolist())):
        x, after_x = result.path.states[k].double(), result.path.states[k + 1].double()
        v = bent(result.path.states[k], torch.tensor(sigma, dtype=torch.float32)).double()
        mean, std = by_the_paper(sampler, x, v, sigma, after)
        if std == 0:
            torch.testing.assert_close(after_x, mean, atol=1e-5, rtol=0)
            assert not result.path.log_probs[k].any()
            continue
        wanted = stats.norm(mean.numpy(), std).logpdf(after_x.numpy()).mean((1, 2, 3))
        assert result.path.log_probs[k].tolist() == pytest.approx(wanted.tolist(), abs=2e-4)


def by_the_paper(sampler: RandomSampler, x: Tensor, v: Tensor, sigma: float, after: float) -> tuple[Tensor, float]:
    """Return mean and std of a step; v is dx / dsigma."""
    if not sampler.options.random_to <= sigma <= sampler.options.random_from:
        return x + v * (after - sigma), 0.0
    if isinstance(sampler, FlowSde):
        dt = after - sigma
        s = sampler.options.noise * (sigma / (1 - (after if sigma == 1 else sigma))) ** 0.5
        score = -(x + (1 - sigma) * v) / sigma  # of the marginal: E[noise | x] = x + (1 - sigma) v, divided by -sigma
        return x + (v - s**2 / 2 * score) * dt, s * (-dt) ** 0.5
    x0, eps, fresh = x - sigma * v, x + (1 - sigma) * v, after * math.sin(sampler.options.eta * math.pi / 2)
    return (1 - after) * x0 + math.sqrt(after**2 - fresh**2) * eps, fresh


@each
def test_steps_follow_their_stated_distribution(sampler: RandomSampler) -> None:
    """(x' - mean) / std is standard normal and differs between steps and between samples."""
    count = 400
    result = sampler.sample(bent, noise(count), steps=6, schedule=Schedule(1.0), draws=keys(count), keep_path=True)
    assert result.path is not None
    z = []
    for k, (sigma, after) in enumerate(pairwise(result.path.sigmas.tolist())):
        x = result.path.states[k]
        mean, std = sampler.step_distribution(x, bent(x, torch.tensor(sigma)), sigma, after)
        if std > 0:
            z.append((result.path.states[k + 1] - mean).double() / std)
    drawn = torch.stack(z).flatten(1)
    assert stats.kstest(drawn.flatten()[::7].numpy(), "norm").pvalue > 1e-3
    close = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert close.abs().max() < 5 / math.sqrt(drawn.shape[1])


@each
def test_samples_depend_only_on_their_keys(sampler: RandomSampler) -> None:
    """The batch and the order have no effect; another key gives another sample."""
    whole = sampler.sample(bent, noise(6), steps=5, schedule=Schedule(3.0), draws=keys(6), keep_path=True)
    again = sampler.sample(bent, noise(6), steps=5, schedule=Schedule(3.0), draws=keys(6))
    assert torch.equal(whole.x0, again.x0)
    for rows in (slice(0, 1), slice(2, 5)):
        part = sampler.sample(
            bent, noise(6)[rows], steps=5, schedule=Schedule(3.0), draws=keys(6)[rows], keep_path=True
        )
        assert whole.path is not None
        assert part.path is not None
        torch.testing.assert_close(part.path.states, whole.path.states[:, rows], atol=1e-6, rtol=1e-6)
    other = sampler.sample(bent, noise(6), steps=5, schedule=Schedule(3.0), draws=keys(6)[::-1])
    assert not torch.allclose(other.x0, whole.x0, atol=1e-3)


@each
def test_number_of_keys_is_checked(sampler: RandomSampler) -> None:
    with pytest.raises(ValueError, match="3 samples and 1 keys"):
        sampler.sample(bent, noise(3), steps=5, schedule=Schedule(3.0), draws=keys(1))


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 3.0), (10, 3.0), (40, 1.0)])
def test_the_first_step_is_finite(steps: int, shift: float) -> None:
    """At sigma = 1 the diffusion is infinite, so its denominator uses the next sigma."""
    result = sde().sample(bent, noise(2), steps=steps, schedule=Schedule(shift), draws=keys(2), keep_path=True)
    assert result.path is not None
    assert result.path.states.isfinite().all()
    after = result.path.sigmas[1].item()
    _, std = sde().step_distribution(noise(2), noise(2), 1.0, after)
    assert std == pytest.approx(0.7 * math.sqrt(1 / (1 - after)) * math.sqrt(1 - after))


@pytest.mark.parametrize("window", [sde(random_from=0.0), cps(random_from=0.0)])
def test_steps_outside_the_window_are_euler_steps(window: RandomSampler) -> None:
    found = window.sample(bent, noise(3), steps=6, schedule=Schedule(3.0), draws=keys(3)).x0
    torch.testing.assert_close(found, FlowEuler(None).sample(bent, noise(3), steps=6, schedule=Schedule(3.0)).x0)


# -- a flow known in closed form: Gaussian data N(MEAN, COVARIANCE) --------------------------------------------------

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
UNIT = torch.eye(2, dtype=torch.float64)


def field(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Return E[noise - x0 | x_sigma = x], x [B, 2]: the prediction of a perfect model."""
    sigma = float(sigma)
    marginal = (1 - sigma) ** 2 * COVARIANCE + sigma**2 * UNIT
    gain = sigma * UNIT - (1 - sigma) * COVARIANCE  # Cov(noise - x0, x_sigma)
    return (x.double() - (1 - sigma) * MEAN) @ torch.linalg.solve(marginal, gain) - MEAN


def moments(sampler: RandomSampler, steps: int) -> tuple[Tensor, Tensor]:
    """Return the exact mean and covariance of the samples; every step is affine in x because the field is."""
    mean, covariance = torch.zeros(2, dtype=torch.float64), UNIT.clone()
    for sigma, after in pairwise(sampler.sigmas(steps, Schedule(1.0)).tolist()):
        points = torch.cat([mean[None], mean + UNIT])
        moved, std = sampler.step_distribution(points, field(points, sigma), sigma, after)
        mean, slope = moved[0], (moved[1:] - moved[0]).T
        covariance = slope @ covariance @ slope.T + std**2 * UNIT
    return mean, covariance


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_sde_and_ode_have_the_same_marginals(level: float) -> None:
    """With many small steps, both have the mean and covariance of the data."""
    steps = 4000
    for sampler in (sde(noise=level), sde(random_from=0.0)):
        mean, covariance = moments(sampler, steps)
        torch.testing.assert_close(mean, MEAN, atol=1e-9, rtol=0)
        torch.testing.assert_close(covariance, COVARIANCE, atol=0.01, rtol=0)


def test_samples_of_sde_and_ode_agree_within_monte_carlo_error() -> None:
    count = 4000
    start = torch.randn(count, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for sampler in (sde(), sde(random_from=0.0)):
        x0 = sampler.sample(field, start, steps=100, schedule=Schedule(1.0), draws=keys(count)).x0
        wanted_mean, wanted = moments(sampler, 100)
        error = (x0.mean(0) - wanted_mean).abs() / (wanted.diag() / count).sqrt()
        assert error.max() < 4
        sharded = torch.sqrt((wanted.diag()[:, None] * wanted.diag() + wanted.square()) / count)
        assert ((torch.cov(x0.T) - wanted).abs() / sharded).max() < 4
        torch.testing.assert_close(wanted, COVARIANCE, atol=0.02, rtol=0)


@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("steps", [3, 10, 40])
def test_cps_preserves_the_coefficients(steps: int, eta: float) -> None:
    """For data in one point, the state at every sigma is exactly (1 - sigma) x0 + sigma * standard normal."""
    sampler, point, variance = cps(eta=eta), 1.3, 1.0
    for sigma, after in pairwise(sampler.sigmas(steps, Schedule(3.0)).tolist()):
        x = torch.tensor([[(1 - sigma) * point], [(1 - sigma) * point + 1]], dtype=torch.float64)
        moved, std = sampler.step_distribution(x, (x - point) / sigma, sigma, after)
        variance = (moved[1] - moved[0]).item() ** 2 * variance + std**2
        assert moved[0].item() == pytest.approx((1 - after) * point, abs=1e-12)
        assert variance == pytest.approx(after**2, abs=1e-12)


def test_sde_leaves_excess_noise_and_cps_does_not() -> None:
    """Data in one point, ten steps, the state before the last: the purpose of coefficients-preserving sampling."""
    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    surplus = []
    for sampler in (sde(noise=0.9), cps(eta=0.9)):
        result = sampler.sample(
            lambda x, sigma: x / sigma.double(),
            start,
            steps=10,
            schedule=Schedule(1.0),
            draws=keys(4000),
            keep_path=True,
        )
        assert result.path is not None
        surplus.append((result.path.states[-3].std() / result.path.sigmas[-3]).item())
    assert surplus[0] > 1.05
    assert surplus[1] == pytest.approx(1.0, abs=4 / math.sqrt(2 * 4000))


def test_options_that_leave_no_random_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no step is random: `random_to` 0\.9 is above `random_from` 0\.5"):
        sde(random_from=0.5, random_to=0.9)

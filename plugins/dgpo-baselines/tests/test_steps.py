"""Options of Flow-GRPO that change how steps weigh: closed forms of single steps, in float64, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_baselines.options import FlowGrpoOptions, FlowSdeOptions
from dgpo_baselines.samplers import FlowSde
from dgpo_core.contracts import Objective
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import PathSteps, step_stds
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Path, PathStep, Predictions
from dgpo_schemas.sections.training import ObjectiveSection

SHAPE = (2, 3, 3)
SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.0]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def objective(registry: Registry, **options: Any) -> Objective:
    made: Objective = registry.create("objective", ObjectiveSection(use="flow-grpo", kl=0.0, options=options))
    return made


def step(z: Tensor, old: Tensor, sigma: float, next_sigma: float, std: float) -> PathStep:
    """A step of B samples from x = 0 whose mean is dt * velocity, drawn with the noise z under the velocity `old`."""
    dt = next_sigma - sigma
    mean = (dt * old).expand_as(z)
    x = torch.zeros_like(z)
    next_x = mean + std * z
    return PathStep(x, next_x, sigma, next_sigma, gaussian_log_prob(next_x, mean, std), lambda v: (x + dt * v, std),
                    mean=mean, stds=[std, 2 * std, 0.0])  # fmt: skip


def predictions(velocity: Tensor, taken: PathStep, weights: Tensor) -> Predictions:
    size = len(velocity)
    return Predictions(
        velocity=velocity, target=torch.zeros_like(velocity), sigma=torch.full((size,), taken.sigma).double(),
        advantages=weights, signed_weights=weights, group_size=torch.full((size,), float(size)).double(), step=taken,
    )  # fmt: skip


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_the_log_ratio_of_guard_is_centered_under_the_old_policy_at_any_noise(registry: Registry, std: float) -> None:
    """E_old[log r'] = 0 and its standard deviation is |mean - mean_old| / n, in n dimensions, while the plain log-ratio
    has the mean -D: by Monte Carlo over the sampler's noise."""
    draws, n = 20_000, math.prod(SHAPE)
    z = normal(draws, *SHAPE, seed=0)
    old, move = normal(*SHAPE, seed=1), 0.05 * normal(*SHAPE, seed=2)
    taken = step(z, old, 0.9, 0.8, std)
    velocity = (old + move).expand_as(z)
    p = predictions(velocity, taken, -torch.ones(draws, dtype=torch.float64))  # the loss is the ratio, not clipped
    dt = 0.1
    ratio_norm = (dt * objective(registry, ratio_norm=True, clip=0.99).loss(p, None).loss).log()
    plain = objective(registry, clip=0.99).loss(p, None).loss.log()
    scale = float((dt * move).norm()) / n
    assert abs(float(ratio_norm.mean())) < 4 * scale / math.sqrt(draws)
    assert float(ratio_norm.std()) == pytest.approx(scale, rel=0.03)
    divergence = float((dt * move).square().mean()) / (2 * std**2)
    error = float(plain.std()) / math.sqrt(draws)
    assert float(plain.mean()) == pytest.approx(-divergence, abs=4 * error)
    torch.testing.assert_close(ratio_norm, std * (plain + divergence), rtol=1e-9, atol=1e-12)


def test_the_gradient_of_guard_at_the_old_policy_is_the_same_at_every_noise(registry: Registry) -> None:
    """At r' = 1 it is A z / n in the velocity for every step: dt from the mean cancels that of the loss."""
    z, old = normal(4, *SHAPE, seed=0), normal(*SHAPE, seed=1)
    weights = torch.tensor([1.0, -0.5, 2.0, -2.5], dtype=torch.float64)
    for sigma, after, std in ((0.9, 0.8, 0.4), (0.3, 0.25, 0.01)):
        velocity = old.expand_as(z).clone().requires_grad_()
        p = predictions(velocity, step(z, old, sigma, after, std), weights)
        (found,) = torch.autograd.grad(objective(registry, ratio_norm=True).loss(p, None).loss.sum(), velocity)
        torch.testing.assert_close(found, weights[:, None, None, None] * z / math.prod(SHAPE), rtol=1e-9, atol=1e-12)


def test_weights_by_noise_have_the_mean_one_over_the_random_steps(registry: Registry) -> None:
    sampler = FlowSde(FlowSdeOptions(noise=0.7, random_to=0.5))
    states = normal(len(SIGMAS), 3, *SHAPE, seed=0)
    times = torch.tensor(SIGMAS, dtype=torch.float64)
    steps = PathSteps([Path(states, times, torch.zeros(len(SIGMAS) - 1, 3, dtype=torch.float64))], sampler)
    stds = step_stds(sampler, SIGMAS)
    assert [std > 0 for std in stds] == [True, True, True, False]
    v, weights, found = normal(3, *SHAPE, seed=1), torch.ones(3, dtype=torch.float64), []
    for (sigma, after), std in zip(pairwise(SIGMAS), stds, strict=True):
        if std == 0:
            continue
        s = 0.7 * math.sqrt(sigma / (1 - (after if sigma == 1 else sigma)))
        assert std == pytest.approx(s * math.sqrt(sigma - after))
        p = predictions(v, steps.at(sigma, [0, 1, 2]), weights)
        both = [objective(registry, step_weight=w).loss(p, None).loss for w in ("noise", "uniform")]
        found.append(float((both[0] / both[1]).mean()))
        assert found[-1] / found[0] == pytest.approx(std / stds[0])
    assert sum(found) / len(found) == pytest.approx(1.0)


def test_options_are_off_by_default(registry: Registry) -> None:
    z = normal(4, *SHAPE, seed=0)
    taken = step(z, normal(*SHAPE, seed=1), 0.9, 0.8, 0.3)
    p = predictions(normal(4, *SHAPE, seed=3), taken, normal(4, seed=4))
    found, bare = (objective(registry).loss(q, None) for q in (p, replace(p, step=replace(taken, mean=None, stds=()))))
    assert torch.equal(found.loss, bare.loss)
    assert not objective(registry).needs_means


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio_norm": True, "log_prob": "distance"}, "`log_prob: distance` leaves the std out already"),
        ({"ratio_norm": True, "step_weight": "noise"}, "use one of the two"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FlowGrpoOptions.model_validate(options)


def test_a_sampler_without_means_is_refused(registry: Registry) -> None:
    z = normal(2, *SHAPE, seed=0)
    taken = replace(step(z, normal(*SHAPE, seed=1), 0.9, 0.8, 0.3), mean=None)
    with pytest.raises(UserError, match=r"objective\.options\.ratio_norm: flow-grpo compares the means of steps"):
        objective(registry, ratio_norm=True).loss(predictions(z, taken, torch.ones(2, dtype=torch.float64)), None)

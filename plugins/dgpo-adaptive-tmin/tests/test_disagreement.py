"""`disagreement-t-min`: the rule against the divergence of two Gaussians, the measurement against flows with a known
error in few steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_adaptive_tmin.disagreement import DisagreementTmin, hidden_from
from dgpo_adaptive_tmin.options import DisagreementOptions
from dgpo_core.contracts import Probe, TimestepContext
from dgpo_core.draws import Draws
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Conditioning, Schedule
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig

CONTEXT = TimestepContext(torch.linspace(1, 0, 9, dtype=torch.float64), 0.0, 1.0, 1.0, 0, 10)


# -- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1e-4, 0.03, 0.5, 4.0])
def test_divergence_at_the_chosen_sigma(scale: float, tolerance: float) -> None:
    """The Kullback-Leibler divergence per dimension is tolerance^2 / 2; it is larger below sigma, smaller above."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(64, dtype=torch.float64, generator=generator)
    artifact = scale * torch.randn(64, dtype=torch.float64, generator=generator)
    rms = float(artifact.square().mean().sqrt())

    def divergence(sigma: float) -> float:
        clean, perturbed = (torch.distributions.Normal((1 - sigma) * x, sigma) for x in (x0, x0 + artifact))
        return float(torch.distributions.kl_divergence(clean, perturbed).mean())

    sigma = hidden_from(rms, tolerance)
    assert 0 < sigma < 1
    assert divergence(sigma) == pytest.approx(tolerance**2 / 2, rel=1e-9)
    assert divergence(0.99 * sigma) > tolerance**2 / 2 > divergence(sigma + 0.01 * (1 - sigma))


def test_sigma_is_zero_without_an_artifact() -> None:
    assert hidden_from(0.0, 0.1) == 0.0


# -- what is measured -------------------------------------------------------------------------------------------------


class Given(Probe):
    """Many-step samples are 0; few-step samples differ from them by the given amounts."""

    def __init__(self, *artifacts: float) -> None:
        self.artifacts = torch.tensor(artifacts)
        self.asked: list[tuple[int, int]] = []

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        self.asked.append((count, refine))
        signs = torch.tensor([1.0, -1.0]).repeat(8)  # a mean of the difference would be 0
        few = self.artifacts[:count, None] * signs
        return few.view(count, 1, 4, 4) if refine == 1 else torch.zeros(count, 1, 4, 4)

    def errors(self, x0: Tensor, sigmas: Tensor) -> Any:
        raise AssertionError("not needed")


def policy(**options: Any) -> DisagreementTmin:
    return DisagreementTmin(DisagreementOptions(**({"highest": 1.0} | options)))


def measured(artifacts: Sequence[float], **options: Any) -> tuple[float, DisagreementTmin]:
    chosen = policy(samples=len(artifacts), **options)
    chosen.measure(Given(*artifacts), CONTEXT)
    return chosen.bounds(CONTEXT)[0], chosen


@pytest.mark.parametrize("artifacts", [[0.2, 0.2, 0.2], [0.1, 0.4, 0.2], [0.1, 0.2, 0.3, 0.8], [0.3, 0.1]])
def test_median_of_samples_is_used(artifacts: list[float]) -> None:
    found, chosen = measured(artifacts, tolerance=0.05)
    middle = statistics.median(artifacts)
    assert chosen.metrics() == {"disagreement": pytest.approx(middle)}
    assert found == pytest.approx(middle / (middle + 0.05))


def test_outliers_are_ignored() -> None:
    """One of five solves diverges early; t_min does not change."""
    alike, _ = measured([0.1, 0.1, 0.1, 0.1, 0.1])
    outlier, _ = measured([0.1, 0.1, 0.1, 0.1, 50.0])
    assert alike == outlier == pytest.approx(0.5)


def test_samples_and_steps_are_those_of_the_options() -> None:
    probe = Given(*[0.1] * 7)
    policy(samples=7, refine=3).measure(probe, CONTEXT)
    assert probe.asked == [(7, 1), (7, 3)]


# -- flows whose error in few steps is known --------------------------------------------------------------------------

SLOPE = 1.5


class Linear(ToyBackbone):
    """v = SLOPE x: each Euler step multiplies the state by a known factor."""

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return SLOPE * x_sigma


class Straight(ToyBackbone):
    """v depends only on the prompt: paths are straight lines, which one step solves exactly."""

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return conditioning.tensors["c"].mean(1).view(-1, 1, 1, 1).expand_as(x_sigma)


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [
            Component(k.__name__.lower(), "A known flow", f"{__name__}:{k.__name__}", ToyOptions)
            for k in (Linear, Straight)
        ]


def on_flow(
    backbone: str, registry: Registry, directory: Path, t_min: float = 0.0, **options: Any
) -> tuple[float, TrainingRun]:
    """Return the t_min that the policy chooses with the engine's probe."""
    registry.register(_Plugin(), distribution="flows")
    timesteps = {"use": "disagreement-t-min", "t_min": t_min, "options": {"highest": 0.999999, **options}}
    data = run_data(directory, backbone={"use": backbone}, timesteps=timesteps, rollout={"steps": 5, "shift": 3.0})
    engine = Trainer(RunConfig.model_validate(data), registry).build()
    sigmas = engine.training_sigmas
    context = TimestepContext(sigmas, t_min, 1.0, 3.0, 0, 10)
    engine.timesteps.measure(engine.probe(engine.rollout_sampler(), "policy"), context)
    return engine.timesteps.bounds(context)[0], engine


@pytest.mark.parametrize(("refine", "tolerance"), [(2, 0.1), (4, 0.1), (4, 0.02)])
def test_linear_flow_matches_the_closed_form(refine: int, tolerance: float, registry: Registry, tmp_path: Path) -> None:
    found, engine = on_flow("linear", registry, tmp_path, refine=refine, tolerance=tolerance, samples=9)

    def factor(steps: int) -> float:
        product = 1.0
        sigmas = engine.sampler.sigmas(steps, Schedule(3.0)).tolist()
        for here, there in pairwise(sigmas):
            product *= 1 + (there - here) * SLOPE
        return product

    noises = [Draws(3).at("probe", "samples", i, 0, "noise").normal(SHAPE) for i in range(9)]
    sizes = [float(noise.double().square().mean().sqrt()) for noise in noises]
    r = abs(factor(5) - factor(5 * refine)) * statistics.median(sizes)
    assert r > 0.02
    assert found == pytest.approx(r / (r + tolerance), rel=1e-5)
    assert engine.timesteps.metrics()["disagreement"] == pytest.approx(r, rel=1e-5)


@pytest.mark.parametrize("t_min", [0.0, 0.2])
def test_straight_flow_gives_the_t_min_of_the_run(t_min: float, registry: Registry, tmp_path: Path) -> None:
    found, _ = on_flow("straight", registry, tmp_path, t_min=t_min)
    assert found == pytest.approx(t_min, abs=1e-5)
    assert found >= t_min

"""A model's loss weight w equals a loss whose predictions are farther from the target by the factor sqrt(w)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import PathStep, Predictions
from dgpo_schemas.sections.training import ObjectiveSection

WEIGHT = torch.tensor([0.3, 1.7, 4.0, 0.9], dtype=torch.float64)


def predictions() -> Predictions:
    generator = torch.Generator().manual_seed(0)
    velocity, target, reference, base, old = torch.randn(5, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    sigma, signed = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    return Predictions(
        velocity, target, sigma, signed, signed - 0.5, torch.full((4,), 4.0), reference, base, old, loss_weight=WEIGHT
    )


def stretched(p: Predictions) -> Predictions:
    """Return the equivalent predictions without a weight: distances to the target are scaled by its square root."""
    root = WEIGHT.sqrt().view(-1, 1, 1, 1)

    def away(v: Tensor | None) -> Tensor:
        assert v is not None
        return p.target + root * (v - p.target)

    return replace(
        p, velocity=away(p.velocity), reference=away(p.reference), base=away(p.base), old=away(p.old), loss_weight=None
    )


@pytest.mark.parametrize(
    "section",
    [
        {"use": "dgpo", "kl": 0.1},
        {"use": "diffusion-dpo", "kl": 0.1},
        {"use": "diffusion-nft", "kl": 0.1, "options": {"adaptive": False}},
        {"use": "awm", "kl": 0.1},
        {"use": "awm", "kl": 0.1, "clip": None},
        {"use": "crd", "kl": 0.1, "options": {"adaptive": False, "kl_floor": 0.1}},
        {"use": "elbo-pg", "kl": 0.1, "options": {"adaptive": False}},
        {"use": "regularized-dgpo", "kl": 0.1, "clip": None, "options": {"trust_region": 0.1, "kl_from": 0.5}},
    ],
)
def test_every_error_is_weighted(section: dict[str, Any], registry: Registry) -> None:
    objective = registry.create("objective", ObjectiveSection.model_validate(section))
    p = predictions()
    same = stretched(p)

    def run(given: Predictions) -> Any:
        statistic = objective.statistic(given) if objective.needs_statistic else None
        return objective.loss(given, statistic)

    found, expected = run(p), run(same)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found.loss, run(replace(p, loss_weight=None)).loss)
    assert found.metrics.keys() == expected.metrics.keys()
    for name, values in expected.metrics.items():
        torch.testing.assert_close(found.metrics[name], values, rtol=1e-12, atol=1e-12)


def test_adaptive_error_of_nft_is_weighted(registry: Registry) -> None:
    objective = registry.create("objective", ObjectiveSection(use="diffusion-nft", kl=0.0))
    p = replace(predictions(), base=None)
    found, plain = objective.loss(p, None), objective.loss(replace(p, loss_weight=None), None)
    torch.testing.assert_close(found.loss, WEIGHT * plain.loss)


def test_log_densities_of_a_path_are_not_weighted(registry: Registry) -> None:
    objective = registry.create("objective", ObjectiveSection(use="flow-grpo", kl=0.1))
    p = predictions()
    x, next_x = p.target, p.target + 0.1
    step = PathStep(x, next_x, 0.5, 0.4, gaussian_log_prob(next_x, x, 0.3), lambda v: (x + 0.1 * v, 0.3))
    found = objective.loss(replace(p, step=step), None)
    plain = objective.loss(replace(p, step=step, loss_weight=None), None)
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(found.metrics["step_kl"], plain.metrics["step_kl"])
    for name in ("kl", "dsm"):
        torch.testing.assert_close(found.metrics[name], WEIGHT * plain.metrics[name])

"""The declarations import nothing heavy and match their classes; every component passes its contract checks."""

from __future__ import annotations

import contextlib
import unittest
from typing import Any

import pytest

from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import check_declaration, check_light, check_objective, component_checks
from dgpo_schemas.sections.training import ObjectiveSection

SAMPLERS = ["flow-sde", "flow-cps"]
OBJECTIVES = ["flow-grpo", "diffusion-dpo", "diffusion-nft", "awm", "crd", "elbo-pg", "regularized-dgpo"]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("flow-grpo", {"clip": 0.2}),
    ("flow-grpo", {"log_prob": "distance"}),
    ("flow-grpo", {"ratio_norm": True}),
    ("flow-grpo", {"step_weight": "noise"}),
    ("diffusion-nft", {"adaptive": False, "beta": 0.1, "advantage_clip": 1.0}),
    ("awm", {"weighting": "sigma-squared"}),
    ("crd", {"beta": 30.0, "advantage_clip": 1.0, "adaptive": False, "kl_floor": 0.1}),
    ("elbo-pg", {"form": "epg", "adaptive": False, "ratio": False, "scale": 1.0}),
    ("elbo-pg", {"form": "par"}),
    ("regularized-dgpo", {"trust_region": 1e-9, "kl_from": 0.95, "adaptive": True}),
]


@pytest.mark.parametrize("module", ["dgpo_baselines.plugin", "dgpo_baselines.options"])
def test_nothing_heavy_is_imported(module: str) -> None:
    check_light(module)


@pytest.mark.parametrize(("kind", "name"), [("sampler", n) for n in SAMPLERS] + [("objective", n) for n in OBJECTIVES])
def test_contract(kind: str, name: str, registry: Registry) -> None:
    check_declaration(registry, kind, name)
    for check in component_checks(registry, kind, name):
        with contextlib.suppress(unittest.SkipTest):
            check.run()


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("section", [{}, {"kl": 0.0}])
def test_objectives_with_other_options(
    name: str, options: dict[str, Any], section: dict[str, Any], registry: Registry
) -> None:
    block = ObjectiveSection.model_validate({"use": name, "options": options} | section)
    check_objective(registry.create("objective", block))

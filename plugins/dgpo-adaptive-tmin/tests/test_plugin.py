"""The declarations import nothing heavy and match their classes; every component passes its contract checks."""

from __future__ import annotations

import contextlib
import unittest
from typing import Any

import pytest

from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import check_declaration, check_light, check_timesteps, component_checks
from dgpo_schemas.base import UseBlock

POLICIES = ["scheduled-t-min", "disagreement-t-min", "dsm-gap-t-min"]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("scheduled-t-min", {"start": 0.0, "end": 0.6, "shape": "cosine", "until": 0.5, "t_max_start": 0.7}),
    ("disagreement-t-min", {"every": 1, "smoothing": 0.0, "tolerance": 0.01, "highest": 0.6}),
    ("disagreement-t-min", {"every": 3, "samples": 3, "refine": 2}),
    ("dsm-gap-t-min", {"every": 1, "threshold": 0.0, "bins": 3}),
]


@pytest.mark.parametrize("module", ["dgpo_adaptive_tmin.plugin", "dgpo_adaptive_tmin.options"])
def test_nothing_heavy_is_imported(module: str) -> None:
    check_light(module)


@pytest.mark.parametrize("name", POLICIES)
def test_contract(name: str, registry: Registry) -> None:
    check_declaration(registry, "timesteps", name)
    for check in component_checks(registry, "timesteps", name):
        with contextlib.suppress(unittest.SkipTest):
            check.run()


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("within", ["uniform", "sampler-steps"])
def test_contract_with_other_options(name: str, options: dict[str, Any], within: str, registry: Registry) -> None:
    block = UseBlock(use=name, options=options | {"within": within})
    check_timesteps(lambda: registry.create("timesteps", block))

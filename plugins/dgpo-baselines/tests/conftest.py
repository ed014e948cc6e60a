"""Use one thread: on a busy machine, two OpenMP threads can be much slower than one."""

from __future__ import annotations

import pytest
import torch

from dgpo_baselines import plugin as baselines
from dgpo_core.builtin import plugin as builtin
from dgpo_core.plugins.registry import Registry
from dgpo_kit import toy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def registry() -> Registry:
    """The engine's own components, the toy's and this distribution's."""
    made = Registry(discover=False)
    made.register(builtin, distribution="dgpo")
    made.register(toy.plugin, distribution="toy")
    made.register(baselines, distribution="dgpo-baselines")
    return made

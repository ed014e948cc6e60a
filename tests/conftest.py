"""Fixtures that every test may use: a registry that also knows the toy parts, and small run files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.registry import Registry
from dgpo_core.testing.toy import plugin, run_data
from dgpo_schemas.run import RunConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors on two threads are slower than on one, and several tests may run side by side."""
    torch.set_num_threads(1)


@pytest.fixture
def registry() -> Registry:
    """Everything that is installed, and the toy parts."""
    made = Registry()
    made.register(plugin, distribution="toy")
    return made


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A toy run under tmp_path; keywords are sections to change."""

    def make(**changes: Any) -> RunConfig:
        return RunConfig.model_validate(run_data(tmp_path, **changes))

    return make

"""The world of the mistakes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import dgpo_core.plugins.registry as registry_module
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin
from tests.mistaken import TEXT, Run, World


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Registry]:
    """Everything that is installed when the command runs, and the toy parts."""

    @functools.cache
    def installed() -> Registry:
        made = Registry()
        made.register(plugin, distribution="toy")
        return made

    monkeypatch.setattr(registry_module, "get_registry", installed)
    return installed


@pytest.fixture
def world(tmp_path: Path, dgpo: Run, known: Callable[[], Registry], monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, dgpo, known, monkeypatch)
    made.write("run.yaml", TEXT)
    monkeypatch.chdir(tmp_path)
    return made

"""Registers the stub rewards of `tests.scored`, and changes to a temporary working directory."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from dgpo_core.plugins.registry import Registry
from tests.scored import ImagesOnly, Plugin, Stub


@pytest.fixture(autouse=True)
def _stubs(known: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("stub_rewards")
    module.Stub, module.ImagesOnly = Stub, ImagesOnly  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known.register(Plugin(), distribution="stubs")
    Stub.asked, Stub.built, Stub.closed = [], [], 0
    monkeypatch.chdir(tmp_path)

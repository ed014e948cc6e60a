"""A toy run file, and a run that was trained through the API once, for tests of the API."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import dgpo_core.plugins.registry as registry_module
from dgpo_core import Run, load_run
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin, run_data

WriteRun = Callable[..., Path]
SMALL: dict[str, Any] = {
    "run": {"iterations": 2},
    "optimizer": {"learning_rate": 0.05},
    "objective": {"ema": {"every": 1}},
    "evaluation": {"every": 2, "prompts": 3},
    "checkpoints": {"every": 1, "keep": 9},
}


@pytest.fixture
def write_run(tmp_path: Path, known: Registry, monkeypatch: pytest.MonkeyPatch) -> WriteRun:
    """`write_run(run={"seed": 2})`: a toy run file in tmp_path, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(run_data("runs", **{**SMALL, **changes})))
        return path

    return write


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    registry = Registry()
    registry.register(plugin, distribution="toy")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry_module, "get_registry", lambda: registry)
        patched.chdir(directory)
        (directory / "run.yaml").write_text(yaml.safe_dump(run_data("runs", **SMALL)))
        load_run("run.yaml").train()
    return directory


@pytest.fixture
def trained(_trained_once: Path, known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a finished run in tmp_path, which becomes the working directory."""
    shutil.copytree(_trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Run.open("runs/toy")

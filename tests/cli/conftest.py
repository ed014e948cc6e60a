"""Toy runs for the commands that look at one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.run import RunConfig
from tests.conftest import Outcome, typed
from tests.toy_runs import result

WriteRun = Callable[..., Path]
Run = Callable[..., Outcome]


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteRun:
    """`write_run(run={"iterations": 2})`: a toy run file in tmp_path, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str = "run.yaml", **changes: Any) -> Path:
        Path(name).write_text(yaml.safe_dump(run_data("runs", **changes)))
        return Path(name)

    return write


@dataclass(frozen=True)
class Trained:
    """A run directory and its run file, relative to the working directory."""

    path: Path
    file: Path


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations that move the weights far enough to be seen, with every checkpoint and evaluation."""
    directory = tmp_path_factory.mktemp("trained")
    data = run_data(
        directory / "runs",
        optimizer={"learning_rate": 0.05},
        objective={"ema": {"every": 1}},
        evaluation={"every": 1, "prompts": 6, "samples_per_prompt": 2},
        checkpoints={"every": 1, "keep": 9},
    )
    registry = Registry()
    registry.register(plugin, distribution="toy")
    assert Trainer(RunConfig.model_validate(data), registry).train() == "finished"
    (directory / "run.yaml").write_text(yaml.safe_dump(data))
    return directory


@pytest.fixture
def trained(_trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """A copy of a finished run in tmp_path, which becomes the working directory."""
    shutil.copytree(_trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Trained(Path("runs/toy"), Path("run.yaml"))


@pytest.fixture
def reference(dgpo: Callable[..., Any], write_run: WriteRun) -> dict[str, bytes]:
    """The result of the same run, never stopped."""
    assert dgpo("train", write_run(), "--quiet", "--set", "run.name=reference").code == 0
    return result(Path("runs/reference"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`installed("init", "run.yaml")`: a command with everything that is installed, without a terminal."""
    return typed(capsys)

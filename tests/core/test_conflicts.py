"""Options that exclude other settings of a run file (`Options.conflicts`): reported where the file has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import BrightnessOptions, run_data
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig


def refused(registry: Registry, path: Path, monkeypatch: pytest.MonkeyPatch, conflicts: Any) -> list[str]:
    """The problems of a run with two rewards whose options have these conflicts."""
    monkeypatch.setattr(BrightnessOptions, "conflicts", conflicts)
    rewards = [{"use": "brightness", "name": "first"}, {"use": "brightness", "name": "second"}]
    (path / "run.yaml").write_text(yaml.safe_dump(run_data(path) | {"rewards": rewards}, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_run_config(path / "run.yaml", registry=registry)
    return [f"{problem.key}: {problem.message}" for problem in caught.value.problems]


def test_they_know_the_run_and_their_own_place(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflicts(self: BrightnessOptions, run: RunConfig, key: str) -> Iterable[tuple[str, str]]:
        if run.rollout.steps == 3:
            yield "rollout.steps", f"is 3, which {key} cannot do"
        if key.startswith("rewards.1"):
            yield f"{key}.fail", "is for the first reward"

    found = refused(registry, tmp_path, monkeypatch, conflicts)
    assert found == [
        "rollout.steps: is 3, which rewards.0.options cannot do",
        "rollout.steps: is 3, which rewards.1.options cannot do",
        "rewards.1.options.fail: is for the first reward",
    ]


def test_a_check_that_fails_is_reported(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(registry, tmp_path, monkeypatch, lambda self, run, key: 5)
    assert found[0] == "rewards.0.options: the plugin's own check failed with TypeError: 'int' object is not iterable"

"""Fixtures for tests of plugins; `dgpo_kit` brings them to pytest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ToyResult", "ToyRun", "toy_run"]


@dataclass(frozen=True, slots=True)
class ToyResult:
    """A finished toy run: its directory, and `metrics.jsonl` as one mapping an iteration."""

    directory: Path
    metrics: list[dict[str, Any]]


ToyRun = Callable[..., ToyResult]


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRun:
    """`toy_run(rewards=[{"use": "mine"}], run={"iterations": 4})`: train the toy for two iterations, or as many as you
    say, with what you say in place of the toy's own components; everything that is installed can be named.

    Keywords are sections of a run file; their keys are merged into the toy's, but for `backbone`, which is replaced.
    The images are 8x8. Raises what the run raises, and AssertionError if it does not finish.
    """

    def train(**sections: Any) -> ToyResult:
        from dgpo_core.plugins.registry import Registry
        from dgpo_core.training.trainer import Trainer
        from dgpo_kit.toy import ToyPlugin, run_data
        from dgpo_schemas.run import RunConfig

        registry = Registry()
        registry.register(ToyPlugin(reward="toy"), distribution="toy")
        backbone = sections.pop("backbone", None)
        sections = {"rewards": [{"use": "toy"}], **sections}
        sections["run"] = {"iterations": 2, "name": "toy-run"} | sections.get("run", {})
        data = run_data(tmp_path, **sections)
        if backbone is not None:
            data["backbone"] = backbone
        outcome = Trainer(RunConfig.model_validate(data), registry).train()
        assert outcome == "finished", f"the run was {outcome}"
        directory = tmp_path / data["run"]["name"]
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return ToyResult(directory, [json.loads(line) for line in lines])

    return train

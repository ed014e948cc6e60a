"""pytest fixtures for plugin tests, loaded by `pytest_plugins = ["dgpo_kit"]`."""

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
    """A finished toy run: its directory, and `metrics.jsonl` as one mapping per iteration."""

    directory: Path
    metrics: list[dict[str, Any]]


ToyRun = Callable[..., ToyResult]


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRun:
    """Run a short training of the toy model: `toy_run(rewards=[{"use": "mine"}], run={"iterations": 4})`.

    Keyword arguments are sections of a run file. They are merged into the toy's sections, except for `backbone`, which
    replaces the toy backbone; all installed components can be used. By default there are two iterations, and images of
    8x8 pixels. Raises the errors of the run, and AssertionError if it does not finish.
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

"""Fixtures that tests of reports and of ablations share, with those of the command line."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_baselines import plugin as baselines
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin
from dgpo_lab.ablation import runner
from dgpo_lab.ablation.runner import run_cells
from dgpo_lab.doctoring.diagnosis import Diagnosis, diagnose
from dgpo_lab.doctoring.facts import read_facts
from dgpo_lab.reporting import page
from dgpo_lab.reporting.data import RunData, read_run
from tests.ablated import Here, Write
from tests.cli.conftest import _trained_once, trained, write_run
from tests.conftest import _one_thread, _patient, dgpo, film, gloom, known, make_config, registry
from tests.doctored import Written
from tests.reported import Page
from tests.reported import write_run as written_run


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a complete run, as text: drawing it takes a second."""
    made = Registry()
    made.register(plugin, distribution="toy")
    return page.render(read_run(written_run(tmp_path_factory.mktemp("runs") / "quickstart"), made))


@pytest.fixture
def show(registry: Registry) -> Callable[[Path], Page]:
    """The page of a run directory, rendered and parsed."""
    return lambda run: Page(page.render(read_run(run, registry)))


@pytest.fixture
def read(registry: Registry) -> Callable[[Path], RunData]:
    """What the report knows of a run directory."""
    return lambda run: read_run(run, registry)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool, Mapping[str, str]]]]:
    """Cells run in this process; the list of what was started: cell, resumed, environment."""
    Here.started = []
    monkeypatch.setattr(runner, "POLL", 0.0)
    monkeypatch.setattr(run_cells, "__kwdefaults__", {**(run_cells.__kwdefaults__ or {}), "launch": Here})
    return iter([Here.started])


@pytest.fixture
def started(here: Iterator[Any]) -> list[tuple[str, bool, Mapping[str, str]]]:
    found: list[tuple[str, bool, Mapping[str, str]]] = next(here)
    return found


@pytest.fixture
def ablation(write_run: Write) -> Callable[..., Path]:
    """`ablation(seeds=3)`: an ablation file over a toy run."""

    def write(**changes: Any) -> Path:
        write_run(evaluation={"every": 1, "prompts": 4, "samples_per_prompt": 2, "images": 2}, run={"iterations": 2})
        data = {
            "name": "trial", "base": "run.yaml", "seeds": 2,
            "axes": [{"key": "weighting", "values": ["abs-advantage", "best-vs-worst"]}],
        } | changes  # fmt: skip
        Path("ablation.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return Path("ablation.yaml")

    return write


@pytest.fixture
def examine(tmp_path: Path, known: Registry) -> Callable[[Written], Diagnosis]:
    """The diagnosis of a written run; the reward brightness declares [0, 1]."""
    count = iter(range(100))
    known.register(baselines, distribution="dgpo-baselines", version="1.0")  # random samplers

    def make(sick: Written) -> Diagnosis:
        return diagnose(read_facts(sick.write(tmp_path / f"run-{next(count)}"), known))

    return make

"""`dgpo schema`, and that the schemas in the repository are current."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.schema import written
from dgpo_core.plugins.installable import FILE, installable
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.export import stale_schemas

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_schemas_are_written_and_compared(dgpo: Run, tmp_path: Path) -> None:
    out = tmp_path / "json"
    done = dgpo("schema", "--check", "--output", out)
    assert done.code == 1
    assert f"{out}/run.schema.json is out of date" in done.err
    assert not out.exists()

    done = dgpo("schema", "--output", out)
    assert done.code == 0
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json"))
    assert "plugins/backbone.toy.schema.json" in written
    assert done.out.splitlines()[-1] == f"{len(written)} files changed in {out}"

    done = dgpo("schema", "--check", "--output", out)
    assert (done.code, done.out) == (0, f"{out} is up to date\n")
    assert dgpo("schema", "--output", out).out == f"0 files changed in {out}\n"

    run = json.loads((out / "run.schema.json").read_text())
    assert run["$defs"]["RewardBlock"]["properties"]["use"]["examples"] == ["brightness", "win-rate"]


def test_places_that_cannot_be_written(dgpo: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = dgpo("schema", "--output", tmp_path / "file")
    assert (done.code, done.err) == (2, f"--output {tmp_path}/file: is a file; name a directory\n")
    done = dgpo("schema", "--output", tmp_path / "file/below")
    assert (done.code, done.err) == (2, f"--output {tmp_path}/file/below: cannot be written: Not a directory\n")


def test_what_is_installable_is_written_from_what_is_declared(known: Registry) -> None:
    """Of those that are not installed it stays, what is not the project's is left out."""
    before = installable()
    ours = {owner for names in before.values() for owner in names.values()}
    found = json.loads(written(known, {*ours, "toy"}))
    assert found["reward"] == {**before["reward"], "brightness": "toy", "win-rate": "toy"}
    assert found["command"] == before["command"]
    assert "brightness" not in json.loads(written(known, ours))["reward"]
    assert json.loads(written(known, {"dgpo-lab"})).keys() == {"command"}


def test_what_is_installable_is_current(installed: Registry) -> None:
    projects = [tomllib.loads(path.read_text()) for path in ROOT.glob("plugins/*/pyproject.toml")]
    names = {project["project"]["name"] for project in projects}
    assert written(installed, names) == FILE.read_text(), "`dgpo schema` writes it anew"


@pytest.fixture(scope="module")
def installed() -> Registry:
    """What is really installed."""
    return Registry()


def test_the_schemas_in_the_repository_are_current(installed: Registry) -> None:
    ours = {"dgpo", *(owner for names in installable().values() for owner in names.values())}
    models = {
        kind: {name: model for name, model in known.items() if installed.find(kind, name).distribution in ours}
        for kind, known in installed.options_models().items()
    }
    assert stale_schemas(ROOT / "schemas/json", models) == [], "`dgpo schema` writes them anew"

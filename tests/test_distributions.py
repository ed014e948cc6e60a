"""What a distribution imports is what it asks pip for: each can be installed by itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    ".": ["dgpo_core", "dgpo_cli", "schemas/dgpo_schemas"],
    "plugins/dgpo-lab": ["plugins/dgpo-lab/src/dgpo_lab"],
    "plugins/dgpo-remote": ["plugins/dgpo-remote/src/dgpo_remote"],
    "plugins/dgpo-kit": ["plugins/dgpo-kit/src/dgpo_kit"],
}
# Those of a library that is asked for; pytest, where dgpo-kit's fixtures and tests are.
BROUGHT = {"pydantic-core", "psutil", "markupsafe", "h11", "httpcore", "pytest"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(directory: str) -> set[str]:
    """Distributions that pip installs with it, extras included."""
    project = tomllib.loads((ROOT / directory / "pyproject.toml").read_text())["project"]
    more = [one for extra in project.get("optional-dependencies", {}).values() for one in extra]
    return {normal(re.split(r"[^\w.-]", one)[0]) for one in [*project["dependencies"], *more]}


def imported(directory: str) -> Iterator[str]:
    """Distributions of all imports, also those within functions."""
    owners = packages_distributions()
    for path in (path for package in PACKAGES[directory] for path in (ROOT / package).rglob("*.py")):
        if "templates" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                if not top.startswith("dgpo_"):
                    yield normal(owners.get(top, [top])[0])


@pytest.mark.parametrize("directory", PACKAGES)
def test_what_is_imported_is_asked_for(directory: str) -> None:
    with_dgpo = asked_for(".") if "dgpo" in asked_for(directory) else set()
    assert set(imported(directory)) - BROUGHT <= asked_for(directory) | with_dgpo


@pytest.mark.parametrize("directory", PACKAGES)
def test_what_is_asked_for_is_imported(directory: str) -> None:
    trackers = {"tensorboard", "mlflow-skinny"}  # torch imports the one; the other is a smaller mlflow
    assert {one for one in asked_for(directory) if not one.startswith("dgpo")} - trackers <= set(imported(directory))

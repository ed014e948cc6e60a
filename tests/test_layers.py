"""The layers of CONTRIBUTING.md are those that `make lint` checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.layers import PAGE, checked, written


def test_the_page_shows_the_layers_that_are_checked() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run `python -m tests.layers`"


def test_every_package_of_the_repository_has_a_layer() -> None:
    root = PAGE.parent
    ours = {"dgpo_core", "dgpo_cli", "dgpo_schemas", *(p.name for p in root.glob("plugins/*/src/dgpo_*"))}
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == ours | {"experiments", "benchmarks", "documentation"}
    (packages,) = [c for c in checked() if c["name"].startswith("Packages")]
    assert {name.strip() for layer in packages["layers"] for name in layer.replace(":", "|").split("|")} == ours


def test_nothing_is_left_out_of_the_check() -> None:
    settings = tomllib.loads((Path(PAGE).parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert not [key for key in settings if "exclude" in key]
    assert not [c["name"] for c in checked() if c.get("ignore_imports")]

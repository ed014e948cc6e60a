"""What the distribution declares, and that declaring it is cheap."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import check_declaration, check_light
from dgpo_video import plugin


@pytest.mark.parametrize(
    "kind, name",
    [("reward", "frames"), ("reward", "motion")],
)
def test_declarations(kind: str, name: str) -> None:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-video")
    check_declaration(registry, kind, name)


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["dgpo"] == {"video": plugin.__name__}


def test_declaring_imports_nothing_heavy() -> None:
    check_light("dgpo_video.plugin")

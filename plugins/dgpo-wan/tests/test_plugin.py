"""The declarations of the distribution, which import nothing heavy."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from dgpo_core.contracts import Backbone
from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import check_declaration, check_light
from dgpo_wan import plugin
from dgpo_wan.options import WanOptions
from dgpo_wan.testing import make_tiny_checkpoint


def test_the_declared_components_are_backbones() -> None:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-wan")
    components = plugin.dgpo_backbones()
    assert [component.name for component in components] == ["wan", "wan-i2v"]
    for component in components:
        module, _, name = component.implementation.partition(":")
        assert issubclass(getattr(import_module(module), name), Backbone)
        check_declaration(registry, "backbone", component.name)


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["dgpo"] == {"wan": plugin.__name__}


def test_declaring_imports_nothing_heavy() -> None:
    check_light("dgpo_wan.plugin")


@pytest.mark.parametrize(
    "wrong", [{"text_length": 513}, {"text_length": 0}, {"decode_chunk": 0}, {"frames": 0}, {"expert": "both"}]
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WanOptions.model_validate(wrong)


@pytest.mark.parametrize("frames", [1, 5, 9, 33, 81, 121])
def test_possible_numbers_of_frames(frames: int) -> None:
    assert WanOptions(frames=frames).frames == frames


@pytest.mark.parametrize(
    "frames, nearest", [(2, "are 1 and 5"), (16, "are 13 and 17"), (80, "are 77 and 81"), (9_998, "is 9997")]
)
def test_impossible_numbers_of_frames(frames: int, nearest: str) -> None:
    with pytest.raises(ValidationError, match=f"{frames} frames are not possible: .* the nearest {nearest}"):
        WanOptions(frames=frames)


def test_tiny_checkpoint_is_small_and_deterministic(tmp_path: Path) -> None:
    first, second, other = (
        make_tiny_checkpoint(tmp_path / name, boundary=0.5, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert sum(path.stat().st_size for path in first.rglob("*")) < 500_000
    weights = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    assert len(weights) == 4
    for path in weights:
        a, b, c = (load_file(root / path) for root in (first, second, other))
        assert all(a[name].equal(b[name]) for name in a)
        assert not all(a[name].equal(c[name]) for name in a)

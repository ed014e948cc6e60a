"""The declarations of the distribution, which import nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from dgpo_core.contracts import Backbone
from dgpo_sd3 import plugin
from dgpo_sd3.options import SD3Options
from dgpo_sd3.testing import make_tiny_checkpoint


def test_the_declared_component_is_a_backbone() -> None:
    (component,) = plugin.dgpo_backbones()
    module, _, name = component.implementation.partition(":")
    assert component.name == "sd3"
    assert component.options == f"{SD3Options.__module__}:{SD3Options.__name__}"
    assert issubclass(getattr(import_module(module), name), Backbone)


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["dgpo"] == {"sd3": plugin.__name__}


def test_declaring_imports_nothing_heavy() -> None:
    code = (
        "import sys, dgpo_sd3.plugin; "
        "sys.exit(', '.join({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "wrong", [{"text_length": 513}, {"text_length": -1}, {"decode_chunk": 0}, {"negative_prompt": ""}, {"drop_t5": 7}]
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SD3Options.model_validate(wrong)


def test_tiny_checkpoint_is_small_and_deterministic(tmp_path: Path) -> None:
    first, second, other = (
        make_tiny_checkpoint(tmp_path / name, t5=True, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert sum(path.stat().st_size for path in first.rglob("*")) < 500_000
    weights = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    assert len(weights) == 5
    for path in weights:
        a, b, c = (load_file(root / path) for root in (first, second, other))
        assert all(a[name].equal(b[name]) for name in a)
        assert not all(a[name].equal(c[name]) for name in a)

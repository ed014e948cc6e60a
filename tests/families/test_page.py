"""docs/model-families.md: its table, and its commands."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo_core.plugins.registry import get_registry
from dgpo_diffusers.options import DiffusersOptions
from tests.families.proof import proofs
from tests.family_table import PAGE, families, table, written

ROOT = PAGE.parents[1]


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run python -m tests.family_table"


def test_every_family_has_the_common_options_a_tiny_checkpoint_and_an_example() -> None:
    registry = get_registry()
    assert {proof.kind for proof in proofs().values()} == set(families().values())
    for name in families():
        found = registry.find("backbone", name)
        assert issubclass(registry.options_model(found), DiffusersOptions)
        assert found.component.tiny, name
    assert all("../examples/" in row for row in table().splitlines()[2:])


def test_a_family_is_a_small_file() -> None:
    lengths = {
        name: len(Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines())
        for name, kind in families().items()
    }
    assert {name: length for name, length in lengths.items() if length > 150} == {}


@pytest.mark.slow
def test_the_commands_without_published_weights(tmp_path: Path) -> None:
    """As they are typed, in a directory with the examples."""
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = re.sub(r"^\$ ", "", block, flags=re.MULTILINE).replace("dgpo ", f"{sys.executable} -m dgpo_cli ")
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2] reward" in done.stderr
    assert (tmp_path / "adapter/pytorch_lora_weights.safetensors").is_file()

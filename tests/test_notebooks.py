"""The notebooks run from their first cell to their last, and hold nothing of the machine that they were written on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs/notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"""(?<![\w.>])(/(home|root|Users|work|tmp|usr|opt|mnt)/|[A-Z]:\\|~/)""")


def cells(path: Path) -> list[Any]:
    """Its cells that hold code."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_committed_without_outputs_and_absolute_paths(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))  # type: ignore[no-untyped-call]
    assert not MACHINE.search(path.read_text())
    assert path.stat().st_size < 100_000
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells(path))


def test_a_path_of_a_machine_is_seen() -> None:
    assert MACHINE.search('"/home/me/runs"')
    assert MACHINE.search("in /tmp/x")
    assert not MACHINE.search("../../examples/quickstart.yaml and run.output/run.name")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of jupyter's libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert not [output for output in shown if output.output_type == "error"]

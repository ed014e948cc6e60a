"""What commands show on a terminal while they load and evaluate, and what is refused with a preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dgpo_cli.console import bar, loading

Run = Callable[..., Any]


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    loading("toy")
    with bar("evaluate", shown=True) as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    loading("toy from [there]")
    with bar("evaluate", shown=True) as progress:
        progress(1, 2)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("loading toy from [there] ...\n")
    assert "evaluate" in found.err
    assert "1/2" in found.err
    monkeypatch.setenv("RANK", "1")
    loading("toy")
    with bar("evaluate", shown=False) as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_preset_belongs_to_a_run_file(dgpo: Run, tmp_path: Any) -> None:
    done = dgpo("evaluate", tmp_path, "--preset", "24gb")
    assert (done.code, done.out) == (2, "")
    assert "--preset belongs to a run file" in done.err

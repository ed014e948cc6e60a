"""Wheels for another machine: its Python decides what is required, and only what was made here is replaced."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import wheels

REQUIRED = {
    "dgpo": ['old ; python_version < "3.12"', 'new[fast] ; python_version >= "3.12"',
             'full ; python_full_version < "3.13"', 'win ; sys_platform == "win32"',
             'arm ; platform_machine == "aarch64"', 'pypy ; implementation_name == "pypy"',
             'lora ; extra == "lora"', 'docs ; extra == "docs"'],
    "new": ['faster ; extra == "fast"', 'slower ; extra == "slow"', 'oldest ; python_version < "3.11"'],
}  # fmt: skip


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> Any:
        if name in ("oldest", "win", "arm", "pypy", "docs", "slower"):
            raise PackageNotFoundError(name)
        return SimpleNamespace(version="1", requires=REQUIRED.get(name))

    monkeypatch.setattr(wheels, "distribution", distribution)
    monkeypatch.setattr(wheels, "DISTRIBUTIONS", {"dgpo": Path("dgpo")})


@pytest.mark.parametrize(
    ("python", "wanted"),
    [("3.11", {"old", "full", "lora"}), ("3.12", {"new", "faster", "full", "lora"}),
     ("3.13", {"new", "faster", "lora"})],
)  # fmt: skip
@pytest.mark.usefixtures("installed")
def test_the_other_python_decides_what_is_required(python: str, wanted: set[str]) -> None:
    assert wheels.missing((), python).keys() == wanted


@pytest.mark.usefixtures("installed")
def test_what_only_the_other_python_needs_must_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIRED, "dgpo", ["new"])
    assert wheels.missing((), "3.11").keys() == {"new"}
    with pytest.raises(wheels.WheelsError, match=r"oldest is required with Python 3\.10 and not installed here"):
        wheels.missing((), "3.10")


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Wheels that are made, in place of those that would be built and downloaded."""
    names: list[str] = ["a-1.whl"]

    def run(*words: str, cwd: Path) -> None:
        for name in names:
            (Path(words[words.index("-d") + 1]) / name).write_bytes(b"wheel")

    monkeypatch.setattr(wheels, "_run", run)
    monkeypatch.setattr(wheels, "tree_bytes", lambda: 0)
    monkeypatch.setattr(wheels, "missing", lambda present, python: {})
    return names


def test_only_wheels_that_were_made_here_are_replaced(making: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert wheels.collect(tmp_path).keys() == {"a-1.whl"}
    making[:] = ["a-2.whl", "b-1.whl"]
    assert wheels.collect(tmp_path).keys() == {"a-2.whl", "b-1.whl"}
    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "a-2.whl", "b-1.whl", wheels.MADE}


@pytest.mark.parametrize("made", [None, '["a-1.whl"]', "[", "3"])
def test_wheels_of_somebody_else_stay(made: str | None, making: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine-1.whl").write_bytes(b"mine")
    if made:
        (tmp_path / wheels.MADE).write_text(made)
    with pytest.raises(wheels.WheelsError, match="use an empty directory"):
        wheels.collect(tmp_path)
    assert (tmp_path / "mine-1.whl").read_bytes() == b"mine"
    assert not (tmp_path / "a-1.whl").exists()


def test_a_failed_attempt_leaves_the_earlier_wheels(
    making: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.collect(tmp_path)

    def fails(*words: str, cwd: Path) -> None:
        raise wheels.WheelsError("no network")

    monkeypatch.setattr(wheels, "_run", fails)
    with pytest.raises(wheels.WheelsError, match="no network"):
        wheels.collect(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"a-1.whl", wheels.MADE}


@pytest.mark.parametrize("python", ["3", "3.12.1", "py312", "nan"])
def test_what_is_no_python(python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        wheels.main([str(tmp_path / "wheels"), "--python", python])
    assert ended.value.code == 2
    assert f"--python: {python!r} is no version of Python" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""A crash at any moment leaves the old or the new, and what was acknowledged is on the disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.files import append_json, keep_json_lines, new_directory, recover, remove_directory, write_text


def tree(path: Path) -> dict[str, str]:
    """Every file with its content."""
    return {str(f.relative_to(path)): f.read_text() for f in sorted(path.rglob("*")) if f.is_file()}


def fill(path: Path, text: str) -> None:
    path.mkdir(parents=True)
    (path / "file").write_text(text)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Flushes and renames in their order, each with the number of the file or directory that it is about."""
    made: list[tuple[str, int]] = []

    def watch(name: str) -> None:
        original = getattr(os, name)

        def watched(first: Any, *rest: Any) -> Any:
            made.append((name, os.stat(first).st_ino))
            return original(first, *rest)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "rename", "replace"):
        watch(name)
    return made


# -- directories ----------------------------------------------------------------------------------------------------


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "d"
    with new_directory(path) as aside:
        (aside / "file").write_text("new")
        assert not path.exists()
    assert tree(tmp_path) == {"new/d/file": "new"}


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    fill(tmp_path / "d", "old")
    (tmp_path / "d" / "more").write_text("old")
    with new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
        assert tree(tmp_path / "d") == {"file": "old", "more": "old"}
    assert tree(tmp_path) == {"d/file": "new"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), UserError, r"cannot write .*/d: No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (RuntimeError("x"), RuntimeError, "x"),
    ],
)
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, there: bool, error: BaseException, raised: type[BaseException], message: str | None
) -> None:
    if there:
        fill(tmp_path / "d", "old")

    def write() -> None:
        with new_directory(tmp_path / "d") as aside:
            (aside / "file").write_text("half")
            raise error

    with pytest.raises(raised, match=message):
        write()
    assert tree(tmp_path) == ({"d/file": "old"} if there else {})


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fill(tmp_path / "d", "old")
    rename, fails = os.rename, [False, True, False]

    def failing(source: Any, target: Any) -> None:
        if fails.pop(0):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((UserError, KeyboardInterrupt)), new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    assert tree(tmp_path) == {"d/file": "old"}


def test_all_is_on_disk_before_a_directory_gets_its_name(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    with new_directory(tmp_path / "d") as aside:
        (aside / "a").write_text("a")
        (aside / "b").write_text("b")
    d, a, b = (os.stat(tmp_path / "d" / name).st_ino for name in (".", "a", "b"))
    assert {("fsync", a), ("fsync", b)} == set(calls[:2])
    assert calls[2:] == [("fsync", d), ("rename", d), ("fsync", os.stat(tmp_path).st_ino)]


def test_a_directory_vanishes_at_once(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    fill(tmp_path / "d", "old")
    fill(tmp_path / ".d.gone", "of an earlier crash")
    number = os.stat(tmp_path / "d").st_ino
    remove_directory(tmp_path / "d")
    assert calls == [("rename", number)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"d": "old", ".d.writing": "half"}, {"d/file": "old"}),
        ({".d.writing": "half"}, {}),
        ({".d.old": "old", ".d.writing": "new"}, {"d/file": "old"}),
        ({".d.old": "old"}, {"d/file": "old"}),
        ({"d": "new", ".d.old": "old"}, {"d/file": "new"}),
        ({"d": "old", ".c.gone": "half"}, {"d/file": "old"}),
        ({"d": "old", "e.old": "mine", ".f": "mine"}, {"d/file": "old", "e.old/file": "mine", ".f/file": "mine"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_recovering(tmp_path: Path, left: dict[str, str], expected: dict[str, str]) -> None:
    """From every state in which a crash can leave a directory; others' files stay."""
    for name, text in left.items():
        fill(tmp_path / name, text)
    recover(tmp_path)
    assert tree(tmp_path) == dict(sorted(expected.items()))
    recover(tmp_path / "not there")


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_text_is_written_whole(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_text(path, "new: ä\n")
    assert tree(tmp_path) == {"file": "new: ä\n"}
    number = os.stat(path).st_ino
    assert calls == [("fsync", number), ("replace", number)]


def test_a_text_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device"):
        write_text(path, "new")
    assert tree(tmp_path) == {"file": "old"}


def test_lines_are_on_disk_when_they_are_appended(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    path = tmp_path / "log.jsonl"
    append_json(path, {"iteration": 1, "x": 0.1})
    append_json(path, {"iteration": 2, "name": "ä\u2028"}, {"iteration": 2})
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 1, "x": 0.1}, {"iteration": 2, "name": "ä\u2028"}, {"iteration": 2}
    ]  # fmt: skip
    assert calls == [("fsync", os.stat(path).st_ino)] * 2


def test_what_is_no_json_is_not_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_json(path, {"iteration": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json(path, {"iteration": 2}, {"iteration": float("nan")})
    assert path.read_text() == '{"iteration": 1}\n'


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        append_json(tmp_path, {"iteration": 1})


@pytest.mark.parametrize("tail", ["", '{"iteration": 3, "x"', "{", "\0\0\0\0", '{"iteration": 3}', "\ufffd"])
def test_later_lines_and_one_cut_off_are_dropped(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"iteration": 0, "x": 1e-05}\n{"iteration": 2, "a":  [1]}\n{"iteration": 2}\n'
    path.write_text(kept + '{"iteration": 3}\n' + tail)
    keep_json_lines(path, 2)
    assert path.read_text() == kept
    keep_json_lines(path, -1)
    assert path.read_text() == ""


def test_a_log_that_is_not_there_stays_away(tmp_path: Path) -> None:
    keep_json_lines(tmp_path / "log.jsonl", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_removed_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("kept")

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot remove .*/d: Permission denied"):
        remove_directory(tmp_path / "d")
    assert (tmp_path / "d/file").read_text() == "kept"

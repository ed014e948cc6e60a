"""A crash at any moment leaves the old or the new, and what was acknowledged is on the disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.system.files import (
    append_json,
    is_stream,
    keep_json_lines,
    new_directory,
    recover,
    remove_directory,
    why_not_writable,
    write_text,
)


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


# -- what others may have put there ---------------------------------------------------------------------------------


def put(kind: str, path: Path, elsewhere: Path) -> None:
    """Something that is no file of bytes, or a link to one."""
    match kind:
        case "link":
            path.symlink_to(elsewhere)
        case "dangling link":
            path.symlink_to(elsewhere.with_name("nowhere"))
        case "loop":
            path.symlink_to(path.name)
        case "directory":
            path.mkdir()
            (path / "inside").write_text("x")
        case "FIFO":
            os.mkfifo(path)
        case "file":
            path.write_text("left by a crash")


@pytest.mark.parametrize("kind", ["link", "dangling link", "loop", "directory", "FIFO", "file"])
def test_what_lies_where_a_file_is_written_aside_is_replaced_never_followed(kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    put(kind, tmp_path / ".file.writing", precious)
    write_text(tmp_path / "file", "new")
    assert tree(tmp_path) == {"file": "new", "precious": "precious"}
    assert {p.name for p in tmp_path.iterdir()} == {"file", "precious"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "loop"])
def test_a_link_is_replaced_by_the_file(kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    put(kind, tmp_path / "file", precious)
    write_text(tmp_path / "file", "new")
    assert not (tmp_path / "file").is_symlink()
    assert tree(tmp_path) == {"file": "new", "precious": "precious"}


@pytest.mark.parametrize(("kind", "message"), [("directory", "Is a directory"), ("FIFO", "is a FIFO without a reader")])
def test_where_no_file_can_be(kind: str, message: str, tmp_path: Path) -> None:
    put(kind, tmp_path / "file", tmp_path)
    with pytest.raises(UserError, match=f"cannot write .*file: {message}"):
        write_text(tmp_path / "file", "new")
    assert not (tmp_path / ".file.writing").exists()


def test_a_reader_is_written_to(tmp_path: Path) -> None:
    """`--output /dev/stdout`, `--output >(gzip)`: not replaced by a file."""
    path = tmp_path / "file"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_text(path, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    terminal, slave = os.openpty()
    (tmp_path / "terminal").symlink_to(os.ttyname(slave))
    write_text(tmp_path / "terminal", "new")
    assert os.read(terminal, 10) == b"new"
    assert (tmp_path / "terminal").is_symlink()
    os.close(terminal)
    os.close(slave)


def test_standard_output_is_written_to_where_it_is_a_file(tmp_path: Path) -> None:
    """`dgpo evaluate RUN --output /dev/stdout > scores.json`: what was printed before stays, and the device does."""
    with (tmp_path / "out").open("w") as out:
        out.write("before\n")
        out.flush()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{out.fileno()}" if Path("/proc").exists() else "/dev/null")
        write_text(tmp_path / "link", "new\n")
    assert (tmp_path / "link").is_symlink()
    if Path("/proc").exists():
        assert (tmp_path / "out").read_text() == "before\nnew\n"
    assert [is_stream(Path(p)) for p in ("/dev/null", "/dev", "/dev/fd", str(tmp_path / "out"))] == [True] + 3 * [False]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "1")
        append_json(tmp_path / "log", {"iteration": 1})
        with new_directory(tmp_path / "d") as aside:
            (aside / "file").write_text("1")
            (aside / "file").chmod(0o600)  # as safetensors does
        found = [os.stat(tmp_path / name).st_mode & 0o777 for name in ("file", "log", "d/file", "d")]
        assert found == [mode, mode, mode, 0o777 & ~umask]
        (tmp_path / "file").chmod(0o640)
        write_text(tmp_path / "file", "2")
        assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_another_process_that_writes_the_same_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its half of the file must not get the name."""
    aside, fsync = tmp_path / ".file.writing", os.fsync

    def other(handle: int) -> None:
        fsync(handle)
        aside.unlink()
        aside.write_text("half")

    monkeypatch.setattr(os, "fsync", other)
    with pytest.raises(UserError, match="another process is writing it"):
        write_text(tmp_path / "file", "new")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_directories(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def some(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", some)
    with new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    assert tree(tmp_path) == {"d/file": "new"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("which", ["directory", "file"])
def test_a_flush_that_fails_is_a_failure(
    which: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def some(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (which == "directory"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", some)
    with pytest.raises(UserError, match=os.strerror(number)), new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    if which == "file":
        for write in (lambda: write_text(tmp_path / "f", "x"), lambda: append_json(tmp_path / "l", {"iteration": 1})):
            with pytest.raises(UserError, match=os.strerror(number)):
                write()


@pytest.mark.parametrize("name", [".d.writing", ".d.old", ".d.gone"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "FIFO"])
def test_what_lies_where_a_directory_is_written_aside(kind: str, name: str, tmp_path: Path) -> None:
    """A link is taken away; what it leads to stays."""
    fill(tmp_path / "elsewhere", "precious")
    fill(tmp_path / "d", "old")
    put(kind, tmp_path / name, tmp_path / "elsewhere")
    with new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    assert tree(tmp_path / "d") == {"file": "new"}
    remove_directory(tmp_path / "d")
    recover(tmp_path)
    assert tree(tmp_path) == {"elsewhere/file": "precious"}
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]


def test_members_on_another_disk_through_a_link(tmp_path: Path) -> None:
    """Written aside where the link leads, so that renaming does not cross disks."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    seen = []
    with new_directory(tmp_path / "checkpoints" / "000001") as aside:
        (aside / "file").write_text("new")
        seen.append(aside.parent)
    assert seen == [tmp_path / "disk"]
    (tmp_path / "checkpoints" / "000002").symlink_to(tmp_path / "disk" / "000001")
    remove_directory(tmp_path / "checkpoints" / "000002")
    assert tree(tmp_path / "disk") == {"000001/file": "new"}


def test_what_is_no_directory_is_kept_under_another_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d").write_text("mine")
    with new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    assert tree(tmp_path) == {"d/file": "new", "d.before": "mine"}
    assert "was a file; renamed it to d.before" in caplog.text
    remove_directory(tmp_path / "d")
    (tmp_path / "d").write_text("mine too")
    with (
        pytest.raises(UserError, match=r"cannot write .*/d: is a file, not a directory"),
        new_directory(tmp_path / "d"),
    ):
        pass
    assert tree(tmp_path) == {"d": "mine too", "d.before": "mine"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "loop"])
def test_a_link_to_no_directory_is_replaced_by_the_directory(kind: str, tmp_path: Path) -> None:
    """What it leads to is not touched: it may be anything."""
    (tmp_path / "precious").write_text("precious")
    put(kind, tmp_path / "d", tmp_path / "precious")
    with new_directory(tmp_path / "d") as aside:
        (aside / "file").write_text("new")
    assert tree(tmp_path) == {"d/file": "new", "precious": "precious"}


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "d").symlink_to("d")
    with pytest.raises(UserError, match=r"cannot write .*/e: "), new_directory(tmp_path / "d" / "e"):
        pass
    assert why_not_writable(tmp_path / "d" / "e") == f"{tmp_path / 'd'} is a broken symbolic link"


def test_a_log_may_be_a_link_to_a_file_that_is_there(tmp_path: Path) -> None:
    log, real = tmp_path / "log", tmp_path / "disk" / "log"
    real.parent.mkdir()
    log.symlink_to(real)
    with pytest.raises(UserError, match="is a broken symbolic link"):
        append_json(log, {"iteration": 1})
    assert not real.exists()
    real.touch()
    append_json(log, {"iteration": 1})
    append_json(log, {"iteration": 2})
    keep_json_lines(log, 1)
    assert log.is_symlink()
    assert real.read_text() == '{"iteration": 1}\n'


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_a_log_that_is_no_file(kind: str, tmp_path: Path) -> None:
    """Opening a FIFO would wait for a reader; a device takes everything and keeps nothing."""
    slave = os.openpty()[1]
    if kind == "FIFO":
        os.mkfifo(tmp_path / "log")
    else:
        (tmp_path / "log").symlink_to(os.ttyname(slave))
    with pytest.raises(UserError, match=f"cannot write .*log: is a {kind}, not a file"):
        append_json(tmp_path / "log", {"iteration": 1})


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mounted:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: Mounted)
    assert why_not_writable(tmp_path / "a" / "b") == f"{tmp_path} is on a read-only file system"


@pytest.mark.parametrize("text", ["\ud83d", "x" * 100 + "\udcff"])
def test_half_a_character_is_reported_of(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*file: .*ends with half of a character"):
        write_text(tmp_path / "file", text)
    assert list(tmp_path.iterdir()) == []

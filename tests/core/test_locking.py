"""One process at a time in a directory, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.storage import locking
from dgpo_core.storage.locking import in_use
from dgpo_core.storage.run_directory import RunDirectory

HERE = "-".join(socket.gethostname().split())


@pytest.fixture(params=["ENOLCK", "ENOSYS", "ENOTSUP", "EINVAL"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS, FUSE and Lustre may be."""
    number = getattr(errno, request.param)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def gone() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_lock_names_its_holder_and_is_seen(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a")
    assert not in_use(run.path)
    run.acquire()
    assert in_use(run.path)
    assert (run.path / ".lock").read_text() == f"{os.getpid()} {HERE}\n"
    run.release()
    assert not in_use(run.path)


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, no_locks: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "a")
    run.acquire()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"the file system of {run.path} has no locks" in record.getMessage()
    assert "the last one" not in record.getMessage()
    run.release()
    assert (run.path / ".lock").read_text() == ""


@pytest.mark.parametrize(
    ("line", "refused", "reported"),
    [
        (f"{os.getppid()} {HERE}\n", True, ""),
        ("0 elsewhere\n", False, ""),
        ("12 elsewhere\n", False, "its last user was process 12 on elsewhere"),
        (f"{os.getppid()}\n", False, ""),  # of an older version, and perhaps of another machine
        (f"{'9' * 30} {HERE}", False, ""),
        ("\0\0\0\0", False, ""),
        ("²", False, ""),
        ("", False, ""),
    ],
)
def test_without_locks_the_holder_is_asked_for(
    line: str, refused: bool, reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".lock").write_text(line)
    assert in_use(tmp_path) is refused
    run = RunDirectory(tmp_path)
    if refused:
        with pytest.raises(UserError, match=rf"in use by another process \(pid {os.getppid()}\)"):
            run.acquire()
        assert (tmp_path / ".lock").read_text() == line
        return
    run.acquire()
    assert reported in caplog.text
    run.release()


def test_without_locks_a_process_that_was_killed_does_not_keep_the_directory(tmp_path: Path, no_locks: None) -> None:
    (tmp_path / ".lock").write_text(f"{gone()} {HERE}\n")
    run = RunDirectory(tmp_path)
    run.acquire()
    run.release()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_other_failures_are_reported(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=rf"run\.output: cannot write to .*: {os.strerror(number)}"):
        RunDirectory(tmp_path).acquire()


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "FIFO"])
def test_a_lock_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    """Through a link a file elsewhere would be overwritten, or made; opening a FIFO could wait for ever."""
    lock, precious = tmp_path / "a" / ".lock", tmp_path / "precious"
    lock.parent.mkdir()
    precious.write_text("precious")
    match kind:
        case "link":
            lock.symlink_to(precious)
        case "dangling link":
            lock.symlink_to(tmp_path / "made")
        case "directory":
            lock.mkdir()
        case _:
            os.mkfifo(lock)
    with pytest.raises(UserError, match=r"\.lock(: Is a directory| is a (symbolic link|FIFO).*remove it)"):
        RunDirectory(lock.parent).acquire()
    assert not in_use(lock.parent)
    assert precious.read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_the_words_of_a_lock_are_bounded(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("9" * 100_000)
    handle = os.open(tmp_path / ".lock", os.O_RDONLY)
    assert len(locking._holder(handle)[0]) == 200
    os.close(handle)

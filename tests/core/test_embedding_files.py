"""Files of the cache of embeddings: bounded, shared by processes, and never the reason why a run ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo_core.errors import UserError
from dgpo_core.storage import embeddings
from dgpo_core.storage.embeddings import EmbeddingFiles, default_directory, encoder_directories

INFO = {"backbone": "toy"}
ROW = b"x" * 4096


def opened(directory: Path, rows: int = 100, identity: str = "one") -> EmbeddingFiles:
    return EmbeddingFiles(directory, rows * 4096, identity, INFO)


def stored(directory: Path) -> set[str]:
    return {path.stem for path in directory.glob("*/*.safetensors")}


def test_names_depend_on_the_encoder_and_on_every_part_of_the_key(tmp_path: Path) -> None:
    keys = [
        ["prompt", ["a", [], [32, 32]]], ["prompt", ["a", [], [32, 48]]], ["prompt", ["a", ["ff"], [32, 32]]],
        ["prompt", ["b", [], [32, 32]]], ["negative", "a", [[], [32, 32]]], ["negative", None, [[], [32, 32]]],
        ["negative", "", [[], [32, 32]]], ["prompt", ["\udc80", [], None]],
    ]  # fmt: skip
    names = {opened(tmp_path, identity=i).name(key) for i in ("one", "two") for key in keys}
    assert len(names) == 2 * len(keys)
    assert opened(tmp_path).name(("prompt", ("a", (), (32, 32)))) == opened(tmp_path).name(keys[0])


def test_a_row_is_read_by_every_process_with_the_same_encoder(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    files = opened(directory)
    assert files.read("a") is None
    assert not directory.exists(), "reading creates nothing"
    files.write("a", ROW)
    assert opened(directory).read("a") == ROW
    assert opened(directory, identity="other").read("a") is None
    (found,) = encoder_directories(directory)
    assert (found.rows, found.bytes, found.info) == (1, 4096, INFO)
    assert not list(directory.rglob("*.writing"))


def test_the_least_recently_used_rows_are_deleted(tmp_path: Path) -> None:
    files = opened(tmp_path, 10)
    for i in range(10):
        files.write(f"{i}", ROW)
        os.utime(files._path(f"{i}"), (i, i))
    other = opened(tmp_path, 10, "two")
    assert files.read("0") == ROW  # used now
    other.write("new", ROW)
    assert stored(tmp_path) == {"0", *"3456789", "new"}, "down to nine tenths, over all encoders"


def test_what_other_processes_write_counts(tmp_path: Path) -> None:
    one, two = opened(tmp_path, 40), opened(tmp_path, 40, "two")
    for i in range(60):
        one.write(f"a{i}", ROW)
        two.write(f"b{i}", ROW)
    assert 30 <= len(stored(tmp_path)) <= 44


def test_a_cache_that_is_too_small_for_its_run_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = opened(tmp_path, 3)
    for i in range(9):
        files.write(f"{i}", ROW)
    assert [record.message for record in caplog.records] == [
        "backbone.cache: max_gb: 1.2288e-05 GB is too small for the prompts of this run, whose embeddings displace "
        "each other; set a larger maximum, or remove `cache`"
    ]
    files.write("huge", ROW * 4)
    assert "huge" not in stored(tmp_path)


def test_an_embedding_larger_than_the_cache_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = opened(tmp_path, 1)
    for name in "ab":
        files.write(name, ROW * 4)
    (record,) = caplog.records
    assert re.fullmatch(
        r"backbone\.cache: max_gb: \S+ GB is too small for an embedding .*, of \d+ bytes; set a larger "
        "maximum, or remove `cache`",
        record.message,
    )
    assert not stored(tmp_path)


def test_what_a_crash_left_is_cleaned_up_and_what_is_written_now_is_not(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write("a", ROW)
    place = files._path("a").parent
    old, new, foreign = place / ".b.0.writing", place / ".c.0.writing", tmp_path / "notes" / "x.safetensors"
    foreign.parent.mkdir()
    for path in (old, new, foreign):
        path.write_bytes(b"part")
    os.utime(old, (0, 0))
    opened(tmp_path, 1).write("d", ROW)
    assert not old.exists()
    assert new.exists()
    assert foreign.exists(), "only directories of encoders are the cache's"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    files = opened(tmp_path)
    files.write("a", ROW)

    def full(path: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", full)
    for name in "bcd":
        files.write(name, ROW)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        f"backbone.cache: cannot write to {tmp_path}: {os.strerror(code)}; new embeddings are not kept"
    )
    assert stored(tmp_path) == {"a"}
    assert not list(tmp_path.rglob("*.writing")), "no part is left"
    assert files.read("a") == ROW, "what is there is still used"


def test_a_directory_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).write("a", ROW)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("utime", "open", "mkdir", "unlink"):
        real = getattr(os, name)
        if name == "open":
            monkeypatch.setattr(
                os, name, lambda path, flags, *more, real=real: refuse() if flags & os.O_CREAT else real(path, flags)
            )
        else:
            monkeypatch.setattr(os, name, refuse)
    files = opened(tmp_path)
    assert files.read("a") == ROW
    files.write("b", ROW)
    files.discard("a", "why")
    assert len(caplog.records) == 2
    monkeypatch.undo()
    assert stored(tmp_path) == {"a"}


def test_paths_that_are_no_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    files = opened(file)
    assert files.read("a") is None
    files.write("a", ROW)
    files.write("b", ROW)
    assert file.read_text() == "mine"
    assert len(caplog.records) == 2  # one about reading, one about writing


def test_a_pipe_in_the_place_of_a_row_does_not_block(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write("a", ROW)
    files._path("a").unlink()
    os.mkfifo(files._path("a"))
    assert files.read("a") is None
    files.write("a", ROW)
    assert files.read("a") == ROW


def test_clearing_while_a_run_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = opened(tmp_path)
    files.write("a", ROW)
    for one in encoder_directories(tmp_path):
        one.remove()
    assert encoder_directories(tmp_path) == []
    files.write("b", ROW)
    assert files.read("b") == ROW
    assert not caplog.records


def test_a_damaged_description_of_an_encoder(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.write("a", ROW)
    (files._path("a").parent / "encoder.json").write_text("{")
    assert [(one.info, one.rows) for one in encoder_directories(tmp_path)] == [({}, 1)]
    assert encoder_directories(tmp_path / "nothing") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--directory: cannot read"):
        encoder_directories(tmp_path / "file")


WRITER = """
import sys
from pathlib import Path
from dgpo_core.storage.embeddings import EmbeddingFiles
files = EmbeddingFiles(Path(sys.argv[1]), 40 * 4096, "one", {})
print("ready", flush=True)
sys.stdin.readline()
for turn in range(8):
    for i in range(8):
        row = str(i).encode() * 4096
        content = files.read(str(i))
        assert content in (None, row), "a part of a row"
        files.write(str(i), row)
        files.write(f"{sys.argv[2]}-{turn}-{i}", row)
"""


def test_processes_that_write_the_same_rows(tmp_path: Path) -> None:
    """While they also delete each other's: 2 * 72 rows in the space of 40."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(i)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "is damaged" not in errors
        assert "cannot" not in errors
    files = list(tmp_path.glob("*/*.safetensors"))
    assert 20 <= len(files) <= 50
    assert all(path.stat().st_size == 4096 for path in files)
    assert not list(tmp_path.rglob("*.writing"))


def test_where_it_is_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DGPO_CACHE", str(tmp_path / "own"))
    assert default_directory() == tmp_path / "own" / "embeddings"
    monkeypatch.delenv("DGPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "xdg" / "dgpo" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "dgpo" / "embeddings"


def test_rows_are_described_in_plain_json(tmp_path: Path) -> None:
    opened(tmp_path).write("a", ROW)
    (file,) = tmp_path.glob("*/encoder.json")
    assert json.loads(file.read_text()) == INFO
    assert file.name == embeddings.INFO

"""Writing files so that a crash leaves the old or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError

__all__ = ["append_json", "fsync_directory", "keep_json_lines", "new_directory", "write_text"]


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears under its name only when it is complete and on disk; an old one is replaced.

    Raises UserError when the disk is full or not writable; nothing that was there before is touched then.
    """
    aside = path.with_name(f".{path.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync_file(file)
        fsync_directory(aside)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            aside.rename(path)
        fsync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: aside, flushed to disk, renamed."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        with aside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def append_json(path: Path, *records: dict[str, Any]) -> None:
    """Append JSON lines, in one write: after a crash all of them are there or none is whole."""
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write("".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def keep_json_lines(path: Path, iteration: int) -> None:
    """Drop records after an iteration, and a last line that a crash cut off; a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["iteration"] <= iteration:
            kept.append(line + "\n")
    write_text(path, "".join(kept))

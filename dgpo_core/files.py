"""Writing files so that a crash leaves the old or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dgpo_core.errors import UserError
from dgpo_schemas.manifest import FileEntry

__all__ = [
    "append_json",
    "file_entry",
    "fsync_directory",
    "keep_json_lines",
    "new_directory",
    "read_json_lines",
    "recover",
    "remove_directory",
    "why_not_writable",
    "write_bytes",
    "write_text",
]

log = logging.getLogger(__name__)


def why_not_writable(path: Path) -> str | None:
    """Why a directory cannot be made at `path`, or files in it if it is there; None if nothing is known against it.

    Writes nothing, so it can be asked long before there is anything to write.
    """
    try:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    except OSError as error:
        return error.strerror or str(error)
    if not there.is_dir():
        return f"{there} is a file"
    return None if os.access(there, os.W_OK | os.X_OK) else f"no permission to write in {there}"


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

    Raises UserError when the disk is full or not writable; nothing that was there before is touched then. After a
    crash `recover` tidies up.
    """
    named, path = path, path.resolve()  # what a link leads to is replaced, not the link
    aside, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync_file(file)
        fsync_directory(aside)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        aside.rename(path)
        fsync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {named}: {error.strerror or error}") from error
        raise


def remove_directory(path: Path) -> None:
    """Delete a directory so that a crash leaves all of it or nothing under its name. Raises UserError if it cannot."""
    gone = path.with_name(f".{path.name}.gone")
    try:
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror or error}") from error


def recover(directory: Path) -> None:
    """Tidy up what a crash left in a directory whose members `new_directory` and `remove_directory` manage.

    What was half written or half deleted goes; what was to be replaced comes back unless its successor is there.
    """
    for old in directory.glob(".*.old"):
        path = directory / old.name.removeprefix(".").removesuffix(".old")
        if not path.exists():
            old.rename(path)
    for suffix in ("old", "writing", "gone"):
        for left in directory.glob(f".*.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)


def file_entry(path: Path, size: int | None = None) -> FileEntry:
    """Digest and length of a file, or of its first `size` bytes; of nothing if it is not there. Raises OSError."""
    sha, left, read = hashlib.sha256(), size, 0
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return FileEntry(sha256=sha.hexdigest(), bytes=0)
    with handle:
        if size is None:
            sha = hashlib.file_digest(handle, "sha256")
            read = handle.tell()
        while left:
            block = handle.read(min(left, 1 << 20))
            if not block:
                break
            sha.update(block)
            left, read = left - len(block), read + len(block)
    return FileEntry(sha256=sha.hexdigest(), bytes=read)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: aside, flushed to disk, renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same with bytes."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        with aside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def append_json(path: Path, *records: dict[str, Any]) -> None:
    """Append JSON lines, in one write, and flush them to disk: what is written after them never tells of more."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_json_lines(
    path: Path, needed: Mapping[str, tuple[type, ...]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """(lines with what they say, numbers of lines that say nothing) of a log whose records are numbered by
    `iteration`. A last line that a crash cut off is of neither. needed: what else a record must have, and its types."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    sound, broken = [], []
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends with \n, so the last part is no line
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(
            isinstance(record.get(key), types) for key, types in {"iteration": (int,), **needed}.items()
        ):
            sound.append((line, record))
        else:
            broken.append(number)
    return sound, broken


def keep_json_lines(path: Path, iteration: int, needed: Mapping[str, tuple[type, ...]] = MappingProxyType({})) -> None:
    """Drop records after an iteration, and a last line that a crash cut off; a resumed run writes them again.

    Lines that a disk has damaged cannot be written again: they are dropped too, and named in the log.
    """
    if not path.exists():
        return
    sound, broken = read_json_lines(path, needed)
    if broken:
        log.warning("%s: damaged, left out: line %s", path, ", ".join(map(str, broken)))
    write_text(path, "".join(f"{line}\n" for line, record in sound if record["iteration"] <= iteration))

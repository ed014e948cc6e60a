"""Read files of a run directory safely, whatever a crash, a disk error, a program or a person has left there."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from dgpo_core.system.portable import BINARY, CLOEXEC, NONBLOCK
from dgpo_schemas.text import clean

__all__ = [
    "DEEPEST",
    "LARGEST",
    "LARGEST_LOG",
    "is_deeper",
    "kind_of",
    "open_file",
    "parse_json",
    "read_file",
    "read_json",
    "split_lines",
    "why",
]

LARGEST = 64 * 2**20
"""Maximum size of a JSON file in bytes; those of a run have a few KiB."""
LARGEST_LOG = 4 * 2**30
"""Maximum size of a log in bytes; a million iterations take a third of it."""
DEEPEST = 64
"""Maximum nesting depth of JSON; files of a run have five levels."""


def why(error: Exception) -> str:
    """Return the reason of an error without the file's name, which the caller puts before it."""
    return clean((error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__, 300)


def kind_of(mode: int) -> str:
    """Name the kind of a file by its `st_mode`: `a directory`, `a FIFO`, `a file`."""
    kinds = {
        stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a symbolic link",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a file")


def open_file(path: Path, most: int = LARGEST) -> BufferedReader:
    """Open a regular file for reading, following links. Never blocks, as opening a FIFO would.

    Raises OSError, also if the path is not a regular file, or if it is larger than `most` bytes.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise _not_a_file(mode)
    handle = os.open(path, os.O_RDONLY | NONBLOCK | CLOEXEC | BINARY)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):  # replaced since the check above
            raise _not_a_file(found.st_mode)
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most // 2**20} MiB")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _not_a_file(mode: int) -> OSError:
    kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
    return kind(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"is {kind_of(mode)}, not a file")


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """Return the content of a regular file. Raises OSError like `open_file`; FileNotFoundError if it is missing."""
    with open_file(path, most) as handle:
        return handle.read()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a string or from UTF-8 bytes.

    Raises ValueError if it is invalid, contains NaN or infinities, or is nested more than `DEEPEST` levels.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        data = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deeper(data):
        raise ValueError("nested too deeply")
    return data


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not allowed in JSON")


def is_deeper(data: Any, levels: int = DEEPEST) -> bool:
    """Return whether lists and dicts are nested more than `levels` deep, which recursive functions could not handle.

    Checks level by level, without recursion.
    """
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(levels):
        inner = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        level = [value for value in inner if isinstance(value, dict | list)]
    return bool(level)


def read_json(path: Path, most: int = LARGEST) -> Any:
    """Read a JSON file. Raises OSError like `read_file`, and ValueError like `parse_json`."""
    return parse_json(read_file(path, most))


def split_lines(
    raw: bytes, needed: Mapping[str, tuple[type, ...]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """Split a log into (valid lines with their records, numbers of damaged lines), omitting an incomplete last line.

    needed: keys that a record must have besides `iteration`, with their types.
    """
    sound, broken = [], []
    required = {"iteration": (int,), **needed}
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):  # what follows the last \n is not a complete line
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(_is(record.get(key), types) for key, types in required.items()):
            sound.append((line.decode(), record))
        else:
            broken.append(number)
    return sound, broken


def _is(value: Any, types: tuple[type, ...]) -> bool:
    """Return whether a value has one of the types. Booleans, non-finite floats and 64-bit overflows are not numbers."""
    if isinstance(value, bool) or not isinstance(value, types):
        return bool in types and isinstance(value, bool)
    return not isinstance(value, int | float) or (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    )

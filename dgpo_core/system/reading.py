"""Reading files of a run's directory, whatever a crash, a disk, another program or a person has put in their place."""

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
"""Bytes of a file that is one JSON object; those of a run are a few KiB."""
LARGEST_LOG = 4 * 2**30
"""Bytes of a log; a million iterations take a third of it."""
DEEPEST = 64
"""Brackets within brackets of a JSON text; those of a run have five."""


def why(error: Exception) -> str:
    """Why the system, or one of the functions here, refused: without the file's name, which belongs before it."""
    return clean((error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__, 300)


def kind_of(mode: int) -> str:
    """What a file is that is not one of bytes: `a directory`, `a FIFO`; by its `st_mode`."""
    kinds = {
        stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a symbolic link",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a file")


def open_file(path: Path, most: int = LARGEST) -> BufferedReader:
    """A regular file to read from; links are followed. Never waits, as opening a FIFO would.

    Raises OSError: what is no file of bytes, or larger than `most` bytes, too.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise _no_file(mode)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):  # put there a moment ago
            raise _no_file(found.st_mode)
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most // 2**20} MiB")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _no_file(mode: int) -> OSError:
    kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
    return kind(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"is {kind_of(mode)}, not a file")


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file. Raises OSError like `open_file`, FileNotFoundError if it is not there."""
    with open_file(path, most) as handle:
        return handle.read()


def parse_json(text: str | bytes) -> Any:
    """A JSON text, UTF-8 if it is bytes. Raises ValueError for all that is none, for NaN and infinities, which JSON has
    not, and for what is nested so deeply that nothing can be done with it."""
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
    raise ValueError(f"{name} is no JSON")


def is_deeper(data: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects lie within each other to more levels than these: what looks at them later does so
    recursively. Found level by level, without recursion."""
    here = [data] if isinstance(data, dict | list) else []
    for _ in range(levels):
        inner = [value for one in here for value in (one.values() if isinstance(one, dict) else one)]
        here = [value for value in inner if isinstance(value, dict | list)]
    return bool(here)


def read_json(path: Path, most: int = LARGEST) -> Any:
    """What a JSON file says. Raises OSError like `read_file`, ValueError like `parse_json`."""
    return parse_json(read_file(path, most))


def split_lines(
    raw: bytes, needed: Mapping[str, tuple[type, ...]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """(lines with what they say, numbers of lines that say nothing) of a log's content whose records are numbered by
    `iteration`. A last line that a crash cut off is of neither. needed: what else a record must have, and its types."""
    sound, broken = [], []
    wanted = {"iteration": (int,), **needed}
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):  # a whole line ends with \n, so the last part is no line
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(_is(record.get(key), types) for key, types in wanted.items()):
            sound.append((line.decode(), record))
        else:
            broken.append(number)
    return sound, broken


def _is(value: Any, types: tuple[type, ...]) -> bool:
    """Of one of the types; true and false are no numbers, neither is what no float or index can hold."""
    if isinstance(value, bool) or not isinstance(value, types):
        return bool in types and isinstance(value, bool)
    return not isinstance(value, int | float) or (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    )

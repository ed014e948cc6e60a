"""Read a log as it grows, from where the last reading stopped.

The reader's place is a cursor that it sends back, so that the server keeps nothing between two readings.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from dgpo_core.system.reading import LARGEST_LOG, open_file, parse_json

__all__ = ["Increment", "columns", "increment", "last_records", "number"]

CHUNK = 2 * 2**20
"""Maximum bytes of one reading: some 2,000 iterations."""
CHECKED = 4096
"""Bytes before the cursor that are compared with the last reading."""
LAST = 64 * 2**10
"""Bytes at the end of a log from which the latest records are read: some 60 iterations."""
LARGEST = 1e100
"""Maximum magnitude of a number; larger ones cannot be drawn."""
MOST_COLUMNS = 400
MOST_ITERATIONS = 10**9
"""Maximum iteration number; a log with a larger one is damaged."""
CURSOR = re.compile(r"([0-9a-f]{1,32})\.([0-9]{1,18})\.([0-9a-f]{1,8})")


@dataclass(frozen=True, slots=True)
class Increment:
    """What was appended to a log since a cursor.

    restarted: the log is not the one of the cursor, because it was cut or replaced, and is read from its start again.
    more: further lines can be read at once. damaged: lines that are not JSON objects.
    """

    records: Sequence[Mapping[str, Any]]
    cursor: str
    restarted: bool
    more: bool
    damaged: int


def increment(path: Path, cursor: str = "", most: int = CHUNK) -> Increment:
    """Return the complete lines after a cursor, at most `most` bytes; an incomplete last line is left for later.

    A log that does not exist is empty. Raises OSError if it cannot be read. A cursor that is not one of this log counts
    as none.
    """
    try:
        handle = open_file(path, LARGEST_LOG)
    except FileNotFoundError:
        return Increment((), "", restarted=bool(cursor), more=False, damaged=0)
    with handle:
        start = _place(handle, cursor)
        handle.seek(start)
        raw = handle.read(most)
        end = raw.rfind(b"\n") + 1
        if not end and len(raw) == most:  # a line that is longer than all that a log may contain
            end = most
        records, damaged = _parsed(raw[:end].split(b"\n"))
        place = _cursor(handle, start + end)
    restarted = start == 0 and cursor != "" and not cursor.endswith(".0.0")
    return Increment(records, place, restarted, more=len(raw) == most, damaged=damaged)


def last_records(path: Path, most: int = LAST) -> list[dict[str, Any]]:
    """Return the records at the end of a log, at most `most` bytes; none if it cannot be read."""
    try:
        with open_file(path, LARGEST_LOG) as handle:
            size = os.fstat(handle.fileno()).st_size
            handle.seek(max(0, size - most))
            lines = handle.read(most).split(b"\n")
    except OSError:
        return []
    return _parsed(lines[1:-1] if size > most else lines[:-1])[0]


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return the numbers of records as columns, by their dotted keys; None where a record has none."""
    found: dict[str, list[float | None]] = {}
    for row, record in enumerate(records):
        for key, value in _numbers(record, "", 4):
            if key not in found:
                if len(found) == MOST_COLUMNS:
                    continue
                found[key] = [None] * len(records)
            found[key][row] = value
    return found


def _numbers(record: Mapping[str, Any], prefix: str, levels: int) -> Iterable[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            if levels:
                yield from _numbers(value, f"{prefix}{name}.", levels - 1)
        elif (known := number(value)) is not None:
            yield f"{prefix}{name}", known


def number(value: Any) -> float | None:
    """Return a value if it is a finite number that can be drawn."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
        return value
    return None


def _parsed(lines: Iterable[bytes]) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects with an iteration in some lines, and how many lines are none."""
    records, damaged = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        number = record.get("iteration") if isinstance(record, dict) else None
        if type(number) is int and 0 <= number <= MOST_ITERATIONS:
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def _place(handle: BufferedReader, cursor: str) -> int:
    """Return the offset of a cursor, or 0 if the file has changed before it."""
    match = CURSOR.fullmatch(cursor)
    offset = int(match[2]) if match else 0
    unchanged = 0 < offset <= os.fstat(handle.fileno()).st_size and _cursor(handle, offset) == cursor
    return offset if unchanged else 0


def _cursor(handle: BufferedReader, offset: int) -> str:
    """Return the cursor of an offset: the file's number, the offset, and a checksum of what stands before it."""
    if not offset:
        return f"{os.fstat(handle.fileno()).st_ino:x}.0.0"
    start = max(0, offset - CHECKED)
    handle.seek(start)
    return f"{os.fstat(handle.fileno()).st_ino:x}.{offset}.{zlib.crc32(handle.read(offset - start)):x}"

"""Answers on disk: the journal of a run, and the cache that runs share.

A store is a directory of segments, files of lines `key digest answer`. A process appends only to segments of its own
and replaces none, so any number of processes on any file system may use a store. A line that was cut or damaged is
skipped; of two with the same key, the later one counts. The oldest segments are deleted when the store exceeds its
size.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_judge.answers import Answer

__all__ = ["Store"]

SEGMENTS = 16
"""Number of segments that a full store has."""
SUFFIX = ".answers"


class Store:
    """Answers by key (hexadecimal digests). Thread-safe; sees what other processes wrote before it was opened."""

    def __init__(self, directory: Path, mib: int) -> None:
        """mib: most MiB; raises UserError if the directory cannot be used."""
        self._directory = directory
        self._most = mib * 2**20
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[Path, int, int]] = {}  # key -> file, first byte and length of the line
        self._file: Path | None = None
        self._size = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path in self._segments():
                self._index(path)
        except OSError as error:
            raise UserError(f"{directory}: cannot keep answers: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """Return the answer for a key, or None if there is none or it is no longer readable."""
        with self._lock:
            place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        path, start, length = place
        try:
            with path.open("rb") as file:
                file.seek(start)
                found = _parsed(file.read(length))
        except OSError:  # another process deleted the segment
            return None
        return None if found is None or found[0] != bytes.fromhex(key) else Answer.load(json.loads(found[1]))

    def put(self, key: str, answer: Answer) -> None:
        """Append an answer in place of an earlier one. An OSError (a full disk) is the caller's to report."""
        data = json.dumps(answer.dump(), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
        line = b" ".join((key.encode(), _seal(data), data)) + b"\n"
        with self._lock:
            if self._file is None or self._size + len(line) > self._most // SEGMENTS:
                self._begin()
            assert self._file is not None
            with self._file.open("ab") as file:
                file.write(line)
            self._places[bytes.fromhex(key)] = (self._file, self._size, len(line))
            self._size += len(line)

    def _begin(self) -> None:
        """Begin a new segment, and delete the oldest ones beyond the size."""
        self._file = self._directory / f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}{SUFFIX}"
        self._size = 0
        segments = self._segments()
        sizes = {path: _size(path) for path in segments}
        total = sum(sizes.values()) + self._most // SEGMENTS
        for path in segments:
            if total <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= sizes[path]
            self._places = {key: place for key, place in self._places.items() if place[0] != path}

    def _segments(self) -> list[Path]:
        """Return the segments, the oldest first: their names begin with the time."""
        return sorted(self._directory.glob(f"*{SUFFIX}"))

    def _index(self, path: Path) -> None:
        for start, line in _lines(path):
            found = _parsed(line)
            if found is not None:
                self._places[found[0]] = (path, start, len(line))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            start = 0
            for line in file:
                yield start, line
                start += len(line)
    except FileNotFoundError:  # another process deleted it
        return


def _parsed(line: bytes) -> tuple[bytes, bytes] | None:
    """Return key and data of a line, or None if it is cut or damaged."""
    parts = line.rstrip(b"\n").split(b" ", 2)
    if len(parts) != 3 or not line.endswith(b"\n") or len(parts[0]) != 64 or _seal(parts[2]) != parts[1]:
        return None
    try:
        return bytes.fromhex(parts[0].decode("ascii")), parts[2]
    except ValueError:
        return None


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:16].encode()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0

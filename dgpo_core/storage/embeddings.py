"""Files of the cache of prompt embeddings: one directory per encoder, one file per row.

Several processes and machines may use a directory at the same time, without locks: a file is written under a temporary
name and renamed, so that it is complete or missing, and it may be deleted by any process at any time. The modification
time of a file is the time of its last use. The cache is optional for every run: an error of the disk is reported once
and never ends a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.system.caches import cache_directory
from dgpo_core.system.files import remove_directory
from dgpo_core.system.portable import BINARY, CLOEXEC, NOFOLLOW
from dgpo_core.system.reading import read_file, read_json, why

__all__ = ["EmbeddingFiles", "EncoderDirectory", "default_directory", "encoder_directories"]

log = logging.getLogger(__name__)

ENDING, WRITING = ".safetensors", ".writing"
INFO = "encoder.json"
LARGEST = 2**32
"""Maximum size of a row in bytes."""
BLOCK = 4096
"""Files occupy multiples of this on most file systems."""
KEPT = 0.9
"""Fraction of the maximum that is kept when rows are deleted, so that not every write has to list the directory."""
ABANDONED = 3600.0
"""Age in seconds at which a temporary file is considered left behind by a crash."""


def default_directory() -> Path:
    """Return `embeddings` in the directory of caches. Raises UserError without a home directory."""
    return cache_directory("embeddings", otherwise="backbone.cache.directory: set a directory")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the cache: used: time of its last use, in seconds since the epoch; bytes: space that it occupies."""

    path: Path
    used: float
    bytes: int


class EmbeddingFiles:
    """Rows of one encoder in a directory that may be shared with other encoders, at most `limit` bytes in total."""

    def __init__(self, directory: Path, limit: int, identity: str, info: Mapping[str, Any]) -> None:
        """identity: of the encoder; info: what `dgpo cache` shows about it, JSON data. Reads and writes nothing."""
        self.directory = directory
        self.limit = limit
        self._identity = identity
        self._info = json.dumps(info, indent=1).encode()
        self._place = directory / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._writable = True
        self._warned: set[str] = set()
        self._total: int | None = None
        """Bytes in the directory when it was listed last, and those written by this process since then."""
        self._unlisted = 0
        self._used: set[Path] = set()

    def name(self, key: object) -> str:
        """Return the name of a row: the SHA-256 of the encoder's identity and of the row's key, JSON data."""
        return hashlib.sha256(json.dumps([self._identity, key]).encode()).hexdigest()

    def read(self, name: str) -> bytes | None:
        """Return the content of a row, and mark it as used; None if it is not there or cannot be read."""
        path = self._path(name)
        try:
            content = read_file(path, LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", f"cannot read {path}: {why(error)}; the prompt is encoded again")
            return None
        self._used.add(path)
        with contextlib.suppress(OSError):  # a directory of somebody else's, or a read-only file system
            os.utime(path)
        return content

    def size(self, name: str) -> int | None:
        """Return the bytes that a row occupies; None if it is not there."""
        try:
            return _occupied(self._path(name).stat().st_size)
        except OSError:
            return None

    def discard(self, name: str, reason: str) -> None:
        """Delete a damaged row."""
        path = self._path(name)
        self._warn("damaged", f"{path} is damaged ({reason}); the prompt is encoded again")
        with contextlib.suppress(OSError):
            path.unlink()

    def write(self, name: str, content: bytes) -> None:
        """Write a row, and delete the least recently used rows if the directory is larger than its maximum."""
        size = _occupied(len(content))
        if not self._writable or size > LARGEST:
            return
        if size > self.limit:
            self._warn_of_limit(f"an embedding of this run, of {size} bytes")
            return
        try:
            self._make_room(size)
            path = self._path(name)
            self._write(path, content)
            self._used.add(path)
        except FileNotFoundError:  # the cache was cleared at this moment
            return
        except OSError as error:
            self._writable = False
            self._warn("write", f"cannot write to {self.directory}: {why(error)}; new embeddings are not kept")

    def _path(self, name: str) -> Path:
        return self._place / f"{name}{ENDING}"

    def _warn(self, kind: str, text: str) -> None:
        """Log the first warning of a kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("backbone.cache: %s", text)

    def _warn_of_limit(self, what: str) -> None:
        limit = f"{self.limit / 1e9:g}"
        self._warn("small", f"max_gb: {limit} GB is too small for {what}; set a larger maximum, or remove `cache`")

    def _write(self, path: Path, content: bytes) -> None:
        # Not flushed to disk: a file that a crash leaves incomplete is found by its checksum.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{WRITING}")
        try:
            try:
                handle = _open_new(aside)
            except FileNotFoundError:
                self._make_place()
                handle = _open_new(aside)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def _make_place(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        info = self._place / INFO
        if not info.exists():
            self._write(info, self._info)

    def _make_room(self, size: int) -> None:
        """List the directory if it may be full, and delete rows if it is."""
        # Other processes write too: an occasional look bounds what they add unseen.
        if self._total is None or self._total + size > self.limit or self._unlisted > self.limit / 20:
            self._total, self._unlisted = self._evict(size), 0
        self._total += size
        self._unlisted += size

    def _evict(self, size: int) -> int:
        """Delete rows until `size` more bytes fit. Returns the number of bytes that are left."""
        files = sorted(_rows(self.directory, clean=True), key=lambda file: file.used)
        total = sum(file.bytes for file in files)
        if total + size <= self.limit:
            return total
        for file in files:
            if total + size <= KEPT * self.limit:
                break
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                file.path.unlink()
            total -= file.bytes
            if file.path in self._used:
                self._warn_of_limit("the prompts of this run, whose embeddings displace each other")
        return total


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | CLOEXEC | BINARY, 0o666)


def _occupied(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _places(directory: Path) -> Iterator[Path]:
    """Yield the directories of encoders; directories of other names are not the cache's."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            named = len(entry.name) == 32 and not entry.name.strip("0123456789abcdef")
            if named and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _rows(directory: Path, *, clean: bool = False) -> Iterator[_File]:
    """Yield the rows of all encoders. clean: delete temporary files that a crash has left behind. Raises OSError."""
    for place in _places(directory):
        yield from _rows_of(place, clean=clean)


def _rows_of(place: Path, *, clean: bool = False) -> Iterator[_File]:
    with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(found.st_mode):
                continue
            if entry.name.endswith(ENDING) and not entry.name.startswith("."):
                yield _File(Path(entry.path), found.st_mtime, _occupied(found.st_size))
            elif clean and entry.name.endswith(WRITING) and time.time() - found.st_mtime > ABANDONED:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


@dataclass(frozen=True, slots=True)
class EncoderDirectory:
    """The rows of an encoder: their number, bytes and last use in seconds since the epoch; info: JSON data about the
    encoder, empty if it cannot be read."""

    path: Path
    info: Mapping[str, Any]
    rows: int
    bytes: int
    used: float

    def remove(self) -> None:
        """Delete the rows. Raises UserError."""
        remove_directory(self.path)  # by renaming it first, so that running processes do not add to it meanwhile


def encoder_directories(directory: Path, key: str = "--directory") -> list[EncoderDirectory]:
    """Return the encoders of a cache, the most recently used first. Raises UserError, about the setting `key`, if it
    cannot be read."""
    found = []
    try:
        for place in _places(directory):
            files = list(_rows_of(place))
            try:
                info = read_json(place / INFO)
            except (OSError, ValueError):
                info = {}
            used = max((file.used for file in files), default=0.0)
            total = sum(file.bytes for file in files)
            found.append(EncoderDirectory(place, info if isinstance(info, dict) else {}, len(files), total, used))
    except OSError as error:
        raise UserError(f"{key}: cannot read {directory}: {why(error)}") from error
    return sorted(found, key=lambda one: (-one.used, one.path.name))

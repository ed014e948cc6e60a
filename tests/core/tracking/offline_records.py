"""Reads the records of a run that wandb has logged offline."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["records"]

BLOCK, HEAD, START = 32 * 1024, struct.Struct("<IHB"), 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def _chunks(data: bytes) -> Iterator[bytes]:
    """The log format of LevelDB (github.com/google/leveldb, doc/log_format.md), after the file's own header."""
    at, parts = START, b""
    while at + HEAD.size <= len(data):
        if (left := BLOCK - at % BLOCK) < HEAD.size:
            at += left
            continue
        _, length, kind = HEAD.unpack_from(data, at)
        at += HEAD.size
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts


def records(directory: Path) -> list[Any]:
    """The records of `offline-run-*` directories, in the order in which they were started."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(directory.glob("offline-run-*/*.wandb"), key=lambda file: file.parent.name):
        for chunk in _chunks(file.read_bytes()):
            found.append(Record())
            found[-1].ParseFromString(chunk)
    return found

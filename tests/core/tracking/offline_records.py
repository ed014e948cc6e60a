"""Reads the records of a run that wandb has logged offline."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["records"]

BLOCK, HEAD, START = 32 * 1024, struct.Struct("<IHB"), 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
PATIENCE = 60.0


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


def records(directory: Path, runs: int) -> list[Any]:
    """The records of `offline-run-*` directories, in the order in which they were started.

    wandb's service may still write when a run's `finish` has returned: this waits for the last record of all `runs`.
    """
    end = time.monotonic() + PATIENCE
    while True:
        found = _records(directory)
        if [record.WhichOneof("record_type") for record in found].count("exit") == runs:
            return found
        assert time.monotonic() < end, f"{directory}: {runs} runs have not ended"
        time.sleep(0.1)


def _records(directory: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(directory.glob("offline-run-*/*.wandb"), key=lambda file: file.parent.name):
        for chunk in _chunks(file.read_bytes()):
            found.append(Record())
            found[-1].ParseFromString(chunk)
    return found

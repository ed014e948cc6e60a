"""Headers of safetensors files: names, types, shapes and places of tensors, without the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

__all__ = ["BadHeader", "read_header"]

METADATA = "__metadata__"
LIMIT = 100_000_000
"""Bytes; safetensors' own limit."""


class BadHeader(ValueError):
    """What is wrong with a file, in words that go on after its name; incomplete: because it is cut off."""

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


def read_header(file: BinaryIO, size: int) -> tuple[Mapping[str, Mapping[str, Any]], int]:
    """Entries by names of tensors, and where the tensors' bytes begin, of a file that is read from its beginning.

    size: of the file, in bytes. Raises BadHeader for a file that is none of safetensors, or ends before its tensors do;
    and OSError.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > LIMIT:
        raise BadHeader(f"its {size} bytes do not begin with a header")
    if length > size - 8:
        raise BadHeader(f"it ends within its header, after {size} bytes", incomplete=True)
    try:
        header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != METADATA}
        stops = [int(stop) for _, stop in (entry["data_offsets"] for entry in entries.values())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadHeader("its header cannot be read") from error
    end = 8 + length + max(stops, default=0)
    if size < end:
        raise BadHeader(f"it has {size} bytes of {end}", incomplete=True)
    return entries, 8 + length

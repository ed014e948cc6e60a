"""Read headers of safetensors files: names, dtypes, shapes and offsets of tensors, without their data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

__all__ = ["BadHeader", "read_header"]

METADATA = "__metadata__"
LIMIT = 100_000_000
"""Maximum header length in bytes, as in the safetensors library."""


class BadHeader(ValueError):
    """An invalid header. The message follows the file's name. incomplete: whether the file is truncated."""

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


def read_header(file: BinaryIO, size: int) -> tuple[Mapping[str, Mapping[str, Any]], int]:
    """Return the header entries by tensor name, and the offset of the tensor data in bytes.

    file: open at its beginning. size: of the file, in bytes. Raises BadHeader if it is not a safetensors file or is
    truncated, and OSError if it cannot be read.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > LIMIT:
        raise BadHeader(f"its {size} bytes do not start with a header")
    if length > size - 8:
        raise BadHeader(f"it ends inside its header, after {size} bytes", incomplete=True)
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

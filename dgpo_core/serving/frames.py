"""What a service and its readers send each other over a socket pair: a length, a JSON object, a length, bytes.

Nothing is ever unpickled. No torch here: readers start at once.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["HEAD", "MAGIC", "MOST_HEAD", "packed", "unpacked"]

MAGIC = b"DGPR"
HEAD = struct.Struct("<4sIQ")
"""The magic word, bytes of the JSON and bytes of what follows it."""
MOST_HEAD = 2**20
"""Most bytes of the JSON: reasons, notes and sizes. Whatever may be longer follows it."""


def packed(head: dict[str, Any], length: int = 0) -> bytes:
    """The beginning of a message, with `length` bytes to follow. Raises ValueError if its JSON is too long."""
    text = json.dumps(head).encode()
    if len(text) > MOST_HEAD:
        raise ValueError("the JSON of a message is too long")
    return HEAD.pack(MAGIC, len(text), length) + text


def unpacked(data: bytes | bytearray) -> dict[str, Any]:
    """The JSON of a message. Raises EOFError for what is none: whoever sent it is not to be talked to any more."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EOFError(f"not a message: {error}") from None
    if not isinstance(head, dict):
        raise EOFError("not a message: its JSON is no object")
    return head

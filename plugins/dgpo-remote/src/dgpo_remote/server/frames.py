"""What a service and its readers send each other over a socket pair: a length, a JSON object, a length, bytes.

Nothing is ever unpickled. No torch here: readers start at once.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["BODY_COPIES", "HEAD", "MAGIC", "MOST_HEAD", "OWN_MEMORY", "PIXEL_BYTES", "packed", "unpacked"]

MAGIC = b"DGPR"
HEAD = struct.Struct("<4sIQ")
"""The magic word, bytes of the JSON and bytes of what follows it."""
MOST_HEAD = 2**20
"""Most bytes of the JSON: reasons, notes and sizes. Whatever may be longer follows it."""

OWN_MEMORY = 2**31
"""Bytes of addresses that a reader may have besides what it reads: most of them are its libraries' and its threads'."""
BODY_COPIES = 8
"""Times that a body may lie in its memory: as it came, as text, of which a single rare character may make four bytes a
character, and in pieces."""
PIXEL_BYTES = 48
"""Bytes for each pixel of a file: 16 bits of four channels and what mixes them with white are the most."""


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

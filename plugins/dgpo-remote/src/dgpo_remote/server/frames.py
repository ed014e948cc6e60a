"""Messages between a service and its reader processes over a socket pair: a JSON object followed by bytes.

Pickle is never used. This module does not import torch, so that readers start quickly.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["BODY_COPIES", "HEAD", "MAGIC", "MOST_HEAD", "OWN_MEMORY", "PIXEL_BYTES", "packed", "unpacked"]

MAGIC = b"DGPR"
HEAD = struct.Struct("<4sIQ")
"""The magic word, the size of the JSON and the size of the payload after it, in bytes."""
MOST_HEAD = 2**20
"""Largest JSON in bytes: reasons, notes and sizes. Anything larger goes into the payload."""

OWN_MEMORY = 2**31
"""Address space in bytes that a reader gets besides its input, mostly for its libraries and threads."""
BODY_COPIES = 8
"""Number of copies of a body that fit into a reader's memory: the raw body, its text (up to four bytes per character)
and its parts."""
PIXEL_BYTES = 48
"""Memory per pixel of a file in bytes: at most four 16-bit channels, and blending them with white."""


def packed(head: dict[str, Any], length: int = 0) -> bytes:
    """Serialize the head of a message with a payload of `length` bytes. Raises ValueError if the JSON is too large."""
    text = json.dumps(head).encode()
    if len(text) > MOST_HEAD:
        raise ValueError("the JSON of a message is too large")
    return HEAD.pack(MAGIC, len(text), length) + text


def unpacked(data: bytes | bytearray) -> dict[str, Any]:
    """Parse the JSON of a message. Raises EOFError if it is invalid, so that the connection is closed."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EOFError(f"not a message: {error}") from None
    if not isinstance(head, dict):
        raise EOFError("not a message: its JSON is not an object")
    return head

"""Digests that files carry of themselves, so that a flipped bit or a lost end is found when they are read again.

A seal is no signature: it finds what happened to a file by accident, not what somebody did to it on purpose.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["SEAL", "Seal", "content_digest", "seal_of", "sealed", "sealed_text", "text_seal", "without_seal"]

SEAL = "sha256"
"""The key that holds an object's digest of everything else in it."""
_LINE = "# sha256 {} of the lines below; dgpo compares it when it reads a run's directory"
_FIRST = re.compile(rb"# sha256 ([0-9a-f]{64}) of the lines below[^\n]*\n")

Seal = Literal["whole", "broken", "none"]
"""As written; changed since; written without a seal (by an older version, or by hand)."""


def content_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its seal, in one spelling: sorted keys, no blanks, ASCII."""
    bare = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal as the last key."""
    bare = {key: value for key, value in data.items() if key != SEAL}
    # Through JSON, so that what is digested is what will be read: tuples are lists there.
    return bare | {SEAL: content_digest(json.loads(json.dumps(bare)))}


def seal_of(data: Mapping[str, Any]) -> Seal:
    """How a JSON object that was read stands to its seal."""
    if SEAL not in data:
        return "none"
    return "whole" if data[SEAL] == content_digest(data) else "broken"


def sealed_text(text: str) -> str:
    """A YAML text below a comment with its digest."""
    return _LINE.format(hashlib.sha256(text.encode()).hexdigest()) + "\n" + text


def text_seal(raw: bytes) -> Seal:
    """How the bytes of a file stand to the comment in their first line."""
    first = _FIRST.match(raw)
    if first is None:
        return "none"
    return "whole" if first[1].decode() == hashlib.sha256(raw[first.end() :]).hexdigest() else "broken"


def without_seal(text: str) -> str:
    """A text without the comment that `sealed_text` has put above it."""
    return re.sub(_FIRST.pattern.decode(), "", text, count=1) if _FIRST.match(text.encode(errors="replace")) else text

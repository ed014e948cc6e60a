"""Digests stored inside files (seals), which reveal corruption and truncation when the files are read.

A seal is not a signature: it detects accidental changes, not deliberate ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["SEAL", "Seal", "content_digest", "seal_of", "sealed", "sealed_text", "text_seal", "without_seal"]

SEAL = "sha256"
"""Key of the digest in a JSON object; it covers all other keys."""
_LINE = "# sha256 {} of the lines below; dgpo compares it when it reads a run's directory"
_FIRST = re.compile(rb"# sha256 ([0-9a-f]{64}) of the lines below[^\n]*\n")

Seal = Literal["whole", "broken", "none"]
"""Unchanged; changed after writing; no seal (written by an older version, or by hand)."""


def content_digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object without its seal, serialized with sorted keys, no spaces, ASCII only."""
    bare = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its seal as the last key."""
    bare = {key: value for key, value in data.items() if key != SEAL}
    # A JSON round trip makes the digest match what will be read: tuples become lists.
    return bare | {SEAL: content_digest(json.loads(json.dumps(bare)))}


def seal_of(data: Mapping[str, Any]) -> Seal:
    """Check the seal of a JSON object."""
    if SEAL not in data:
        return "none"
    return "whole" if data[SEAL] == content_digest(data) else "broken"


def sealed_text(text: str) -> str:
    """Return a YAML text with its digest in a comment in the first line."""
    return _LINE.format(hashlib.sha256(text.encode()).hexdigest()) + "\n" + text


def text_seal(raw: bytes) -> Seal:
    """Check the seal in the first line of a file's bytes."""
    first = _FIRST.match(raw)
    if first is None:
        return "none"
    return "whole" if first[1].decode() == hashlib.sha256(raw[first.end() :]).hexdigest() else "broken"


def without_seal(text: str) -> str:
    """A text without the comment that `sealed_text` has put above it."""
    return re.sub(_FIRST.pattern.decode(), "", text, count=1) if _FIRST.match(text.encode(errors="replace")) else text

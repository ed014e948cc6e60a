"""Base64 decoding, with RFC 2045 line breaks, both RFC 4648 alphabets, data URLs, with or without padding."""

from __future__ import annotations

import binascii
import re

from dgpo_schemas.text import clean

__all__ = ["from_base64"]

SPACES = str.maketrans("", "", " \t\r\n\f\v\u00a0\u200b\u2028\u2029\ufeff")
"""Whitespace that is ignored everywhere: editors, mail programs and shells insert it."""
URL_SAFE = str.maketrans("-_", "+/")
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}
"""Percent-encoded base64 characters in data URLs."""
DATA_URL = re.compile(r"\s*data:([^,]{0,1000}),", re.IGNORECASE)
OTHER_URL = re.compile(r"\s*([a-z][a-z0-9+.-]{1,20})://", re.IGNORECASE)
STRANGE = re.compile(r"[^A-Za-z0-9+/]")


def from_base64(text: str) -> bytes:
    """Decode base64. Raises ValueError with the reason for anything else."""
    if found := DATA_URL.match(text):
        if found[1].replace(" ", "").lower().rpartition(";")[2] != "base64":
            raise ValueError("is a data URL without base64; expected data:image/png;base64,...")
        text = text[found.end() :]
        if "%" in text:
            for escape, character in ESCAPES.items():
                text = text.replace(escape, character).replace(escape.lower(), character)
    elif found := OTHER_URL.match(text):
        raise ValueError(f"is a URL ({clean(found[1], 30)}://), not base64: send the file itself")
    digits = text.translate(SPACES).translate(URL_SAFE)
    bare = digits.rstrip("=")
    if not bare:
        raise ValueError("is empty" if not digits else "is not base64: it contains only padding")
    if strange := STRANGE.search(bare):
        at, shown = strange.start(), clean(repr(strange[0]), 20)
        what = "padding in the middle" if strange[0] == "=" else f"the character {shown}"
        raise ValueError(f"is not base64: {what} after {at} of {len(bare)} characters")
    if len(bare) % 4 == 1:
        raise ValueError(f"is not base64, or truncated: {len(bare)} characters are one too many or too few")
    return binascii.a2b_base64(bare + "=" * (-len(bare) % 4))

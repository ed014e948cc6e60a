"""Base64 as programs write it: RFC 2045's line breaks, RFC 4648's two alphabets, data URLs, with or without padding."""

from __future__ import annotations

import binascii
import re

from dgpo_schemas.text import clean

__all__ = ["from_base64"]

SPACES = str.maketrans("", "", " \t\r\n\f\v\u00a0\u200b\u2028\u2029\ufeff")
"""Left out wherever they stand: what editors, mail and shells put between lines and at the ends."""
URL_SAFE = str.maketrans("-_", "+/")
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0D": "", "%0A": "", "%20": ""}
"""What a URL may hold in the place of base64's characters."""
DATA_URL = re.compile(r"\s*data:([^,]{0,1000}),", re.IGNORECASE)
OTHER_URL = re.compile(r"\s*([a-z][a-z0-9+.-]{1,20})://", re.IGNORECASE)
STRANGE = re.compile(r"[^A-Za-z0-9+/]")


def from_base64(text: str) -> bytes:
    """What a text stands for. Raises ValueError, saying what is wrong with it, for anything that is not base64."""
    if found := DATA_URL.match(text):
        if found[1].replace(" ", "").lower().rpartition(";")[2] != "base64":
            raise ValueError("is a data URL that is not in base64: data:image/png;base64,...")
        text = text[found.end() :]
        if "%" in text:
            for escape, character in ESCAPES.items():
                text = text.replace(escape, character).replace(escape.lower(), character)
    elif found := OTHER_URL.match(text):
        raise ValueError(f"is a URL ({clean(found[1], 30)}://), not base64: send the file itself")
    digits = text.translate(SPACES).translate(URL_SAFE)
    bare = digits.rstrip("=")
    if not bare:
        raise ValueError("is empty" if not digits else "is not base64: it holds padding alone")
    if strange := STRANGE.search(bare):
        at, shown = strange.start(), clean(repr(strange[0]), 20)
        what = "padding in the middle" if strange[0] == "=" else f"the character {shown}"
        raise ValueError(f"is not base64: {what}, after {at} of {len(bare)} characters")
    if len(bare) % 4 == 1:
        raise ValueError(f"is not base64, or cut off: its {len(bare)} characters are one too many or too few")
    return binascii.a2b_base64(bare + "=" * (-len(bare) % 4))

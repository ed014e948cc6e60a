"""Detection of characters that word processors, chat programs and web pages insert into YAML and that YAML reads as
text: non-ASCII spaces, zero-width characters, typographic quotes."""

from __future__ import annotations

import re

__all__ = ["in_file", "in_plain_text"]

SPACES = {
    "\u00a0": "no-break space",
    "\u1680": "Ogham space",
    **dict.fromkeys(map(chr, range(0x2000, 0x200B)), "typographic space"),
    "\u202f": "narrow no-break space",
    "\u205f": "mathematical space",
    "\u3000": "ideographic space",
}
WIDTHLESS = {
    "\u200b": "zero-width space",
    "\u2060": "word joiner",
    "\ufeff": "byte order mark",
    "\u00ad": "soft hyphen",
}
"""Zero-width characters that are likely mistakes. Joiners and direction marks (U+200C to U+200F) are not included,
since some languages need them."""
COLON = "\uff1a"
QUOTES = {"“": "”“", "„": "“”", "”": "”", "‘": "’‘", "‚": "‘’", "’": "’", "«": "»", "＂": "＂"}
NAMES = {**SPACES, **WIDTHLESS, COLON: "full-width colon", **dict.fromkeys("“”„‘’‚＂", "typographic quote")}
ADVICE = {
    **dict.fromkeys(SPACES, "write a plain space instead"),
    **dict.fromkeys(WIDTHLESS, "delete it"),
    COLON: "write `: ` instead",
}

_BLANKS = "".join([*SPACES, *WIDTHLESS])
_AFTER_COLON = re.compile(f":[{_BLANKS}]")
_MARKS = "[“”„‘’‚＂]"
_SUSPECT = re.compile(
    f"[{_BLANKS}]|(?<=\\w){COLON}|^[ -]*{_MARKS}|(?<=[ {{\\[,:]){_MARKS}|{_MARKS}(?=:)",
)
"""Characters that may explain a YAML syntax error; typographic quotes only in positions where quotes are allowed."""


def in_plain_text(text: str, *, key: bool) -> str:
    """Describe the first odd character of an unquoted scalar, as a phrase to put after the text; "" if there is none.

    key: whether the scalar is a key of a mapping.
    """
    if text[:1] in QUOTES and len(text) > 1 and text[-1] in QUOTES[text[0]]:
        return f"is in typographic quotes ({text[0]} is U+{ord(text[0]):04X}); use straight quotes, \" or '"
    found = next((c for c in text if c in WIDTHLESS or (key and c in SPACES)), "")
    if not found and not key:
        ends = text[:1] + text[-1:]
        after = _AFTER_COLON.search(text)
        found = next((c for c in ends if c in SPACES), after[0][1] if after else "")
    if not found:
        return ""
    return f"contains {_name(found)}; {ADVICE[found]}{'' if key else ', or quote the text'}"


def in_file(text: str) -> str:
    """Describe the first odd character that may explain a YAML syntax error, as a suffix for a message; "" if there is
    none."""
    for number, line in enumerate(re.split("\r\n?|\n", text), 1):
        found = _SUSPECT.search(re.sub(r"(^|\s)#.*", "", line))
        if found:
            character = found[0][-1]
            advice = ADVICE.get(character, "write a straight quote, \" or ', instead")
            return f"; line {number}, column {found.end()}, contains {_name(character)}: {advice}"
    return ""


def _name(character: str) -> str:
    return f"U+{ord(character):04X} ({NAMES[character]})"

"""Characters that word processors, chat programs and web pages put into YAML, and that YAML takes for text: spaces that
are none, marks without width, typographic quotes."""

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
"""Joiners and marks of direction (U+200C to U+200F) belong to the spelling of some languages, and are no mistakes."""
COLON = "\uff1a"
QUOTES = {"“": "”“", "„": "“”", "”": "”", "‘": "’‘", "‚": "‘’", "’": "’", "«": "»", "＂": "＂"}
NAMES = {**SPACES, **WIDTHLESS, COLON: "full-width colon", **dict.fromkeys("“”„‘’‚＂", "typographic quote")}
ADVICE = {**dict.fromkeys(SPACES, "a plain space"), **dict.fromkeys(WIDTHLESS, "nothing"), COLON: "`: `"}

_BLANKS = "".join([*SPACES, *WIDTHLESS])
_AFTER_COLON = re.compile(f":[{_BLANKS}]")
_MARKS = "[“”„‘’‚＂]"
_SUSPECT = re.compile(
    f"[{_BLANKS}]|(?<=\\w){COLON}|^[ -]*{_MARKS}|(?<=[ {{\\[,:]){_MARKS}|{_MARKS}(?=:)",
)
"""What may be why a line is no YAML: typographic quotes only where quotes may stand."""


def in_plain_text(text: str, *, key: bool) -> str:
    """In words, what is odd about a text that stands without quotes; empty if nothing is. The words follow the text."""
    if text[:1] in QUOTES and len(text) > 1 and text[-1] in QUOTES[text[0]]:
        return f"is in typographic quotes ({text[0]} is U+{ord(text[0]):04X}); write straight ones, \" or '"
    found = next((c for c in text if c in WIDTHLESS or (key and c in SPACES)), "")
    if not found and not key:
        ends = text[:1] + text[-1:]
        after = _AFTER_COLON.search(text)
        found = next((c for c in ends if c in SPACES), after[0][1] if after else "")
    return "" if not found else f"holds {_name(found)}; write {ADVICE[found]} there{'' if key else ', or quote it'}"


def in_file(text: str) -> str:
    """In words that follow a message, where the first such character is that may be why a file is no YAML."""
    for number, line in enumerate(re.split("\r\n?|\n", text), 1):
        found = _SUSPECT.search(re.sub(r"(^|\s)#.*", "", line))
        if found:
            character = found[0][-1]
            advice = ADVICE.get(character, "a straight one, \" or '")
            place = f"line {number}, column {found.end()}"
            return f"; {place}, holds {_name(character)}: write {advice} there"
    return ""


def _name(character: str) -> str:
    return f"U+{ord(character):04X} ({NAMES[character]})"

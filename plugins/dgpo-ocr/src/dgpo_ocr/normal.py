"""One form for texts that look alike: what is asked for and what is read are compared in it. Light: no torch.

A reader cannot tell a no-break space from a space or an en dash from a hyphen, and prompts are typed in many ways, so
none of that may cost a letter. Every step has that reason alone:

- Unicode's compatibility composition (NFKC): decomposed accents, full-width letters, ligatures, no-break spaces,
  superscripts and fractions (`½` is `1/2`) are what they look like.
- typographic quotes, primes and dashes, which fonts and keyboards choose, are `"`, `'` and `-`.
- what has no ink (zero-width characters, soft hyphens, marks of direction, variation selectors) goes.
- case folding, with the dotted and dotless i of Turkish as one letter: a sign in capitals is the same text.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["fold", "squeeze"]

_ALIKE = {
    '"': "“”„‟″‶«»〝〞〟❝❞",
    "'": "‘’‚‛′‵‹›´`ʹʻʼʽˈ❛❜",
    "-": "‐‑‒–—―−⁃﹘﹣－˗⸺⸻",
    "/": "⁄∕",
    "~": "〜∼",
    " ": "\u2800",  # a braille cell without dots
}
_NO_INK = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Unicode's property Default_Ignorable_Code_Point."""
_DRAWN_ALIKE = {ord(c): plain for plain, alike in _ALIKE.items() for c in alike}
_GONE = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _NO_INK) + "]")


def fold(text: str) -> str:
    """The form in which texts are compared, white space as it was. Folding twice changes nothing more."""
    # Before composition, which would take an acute accent apart into a space and a combining one; and after it,
    # because fractions come out with a slash of their own.
    for _ in range(2):
        text = _GONE.sub("", text).translate(_DRAWN_ALIKE)
        text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("ı", "i")
    return unicodedata.normalize("NFKC", text.translate(_DRAWN_ALIKE))


def squeeze(text: str) -> str:
    """`fold`, without any white space, two apostrophes as the one quote that they look like: what the rule `normalized`
    compares."""
    return "".join(fold(text).split()).replace("''", '"')

"""Text normalization: target and recognized text are compared in one form. Does not import torch.

OCR cannot distinguish a no-break space from a space or an en dash from a hyphen, and prompts are typed in many ways, so
such differences must not cost a letter. The steps:

- Unicode's compatibility composition (NFKC): decomposed accents, full-width letters, ligatures, no-break spaces,
  superscripts and fractions (`½` becomes `1/2`).
- Typographic quotes, primes and dashes become `"`, `'` and `-`.
- Invisible characters are removed: zero-width characters, soft hyphens, direction marks, variation selectors.
- Case folding, with the dotted and dotless i of Turkish as one letter.
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
    " ": "\u2800",  # the blank braille pattern
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
    """Normalize a text, but keep its white space. Idempotent."""
    # Translate before composition, which would decompose an acute accent into a space and a combining accent; and
    # after it, because fractions decompose with a fraction slash.
    for _ in range(2):
        text = _GONE.sub("", text).translate(_DRAWN_ALIKE)
        text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("ı", "i")
    return unicodedata.normalize("NFKC", text.translate(_DRAWN_ALIKE))


def squeeze(text: str) -> str:
    """Apply `fold`, remove white space, and replace two apostrophes by a double quote: the form that the rule
    `normalized` compares."""
    return "".join(fold(text).split()).replace("''", '"')

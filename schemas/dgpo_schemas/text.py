"""Display and validation of untrusted text."""

from __future__ import annotations

import re
import shlex
import unicodedata

__all__ = ["LONGEST", "clean", "error_text", "is_visible", "lone_surrogate", "shell_word"]

LONGEST = 2000
"""Default maximum number of characters to show of an untrusted message."""
BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00\ufe0e\ufe0f\uffa0"
"""Letters and marks without a visible glyph: joiners, fillers, the empty Braille pattern, variation selectors."""

HALF = re.compile("[\ud800-\udfff]")


def clean(text: str, most: int = LONGEST, *, lines: bool = False) -> str:
    """Make a text safe for a terminal or a log: escape non-printable characters (`\\x1b`, `\\u202e`) and truncate it to
    `most` characters, ending with an ellipsis. lines: keep line feeds and tabs."""
    kept = " \n\t" if lines else " "
    whole = text if len(text) <= most else text[: max(0, most - 1)]
    shown = "".join(c if c in kept or c.isprintable() else str(ascii(c))[1:-1] for c in whole)
    return shown if whole is text else f"{shown}…"


def error_text(error: BaseException, most: int = LONGEST) -> str:
    """Return `Class: message` of an exception, even if its `__str__` raises; only the class if the message is empty."""
    try:
        message = str(error)
    except BaseException as other:  # `__str__` of a plugin's exception may raise anything
        message = f"(no message: __str__ raised {type(other).__name__})"
    name = type(error).__name__
    return clean(f"{name}: {message}" if message else name, most, lines=True)


def lone_surrogate(text: str) -> int | None:
    """Return the index of the first lone surrogate (U+D800 to U+DFFF), or None if the text is valid Unicode.

    Files and tokenizers cannot represent lone surrogates. They come from JSON escapes such as `"\\ud83d"` and from
    undecodable bytes on the command line.
    """
    found = HALF.search(text)
    return None if found is None else found.start()


def is_visible(text: str) -> bool:
    """Return whether a text contains a visible character: not only white space, control and format characters
    (zero-width spaces, byte order marks) and invisible fillers."""
    return any(
        not c.isspace() and c not in BLANK and unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn") for c in text
    )


def shell_word(text: str) -> str:
    """Quote a text for a bash or zsh command line, if necessary; the result is always one line (`$'a\\nb'`)."""
    if all(c.isprintable() for c in text):
        return shlex.quote(text)
    kept = "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in text)
    return f"$'{kept}'"


def _escaped(c: str) -> str:
    return f"\\{c}" if c in "\\'" else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))

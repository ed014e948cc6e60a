"""Texts from outside: what may be shown, and what is a text at all."""

from __future__ import annotations

import re
import shlex
import unicodedata

__all__ = ["LONGEST", "clean", "error_text", "is_visible", "lone_surrogate", "shell_word"]

LONGEST = 2000
"""Characters of a message from outside that are shown."""
BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00\ufe0e\ufe0f\uffa0"
"""Letters and marks that are drawn as nothing: joiners, fillers, the empty Braille pattern, variation selectors."""

HALF = re.compile("[\ud800-\udfff]")


def clean(text: str, most: int = LONGEST, *, lines: bool = False) -> str:
    """A text that can be shown on a terminal and written to a log: what cannot be printed stands as its escape
    (`\\x1b`, `\\u202e`), and what is longer than `most` characters ends with an ellipsis. `lines`: line feeds and
    tabulators stay as they are."""
    kept = " \n\t" if lines else " "
    whole = text if len(text) <= most else text[: max(0, most - 1)]
    shown = "".join(c if c in kept or c.isprintable() else str(ascii(c))[1:-1] for c in whole)
    return shown if whole is text else f"{shown}…"


def error_text(error: BaseException, most: int = LONGEST) -> str:
    """`Class: message` of an exception, whatever its `__str__` does; the class alone if there is no message."""
    try:
        said = str(error)
    except BaseException as other:  # a plugin's exception may raise anything when it is asked for its text
        said = f"(its text cannot be had: {type(other).__name__})"
    name = type(error).__name__
    return clean(f"{name}: {said}" if said else name, most, lines=True)


def lone_surrogate(text: str) -> int | None:
    """Index of the first character that is half of a pair (U+D800 to U+DFFF), which no file and no tokenizer can hold;
    None in valid text. JSON escapes such as `"\\ud83d"` and undecodable bytes of a command line leave such halves."""
    found = HALF.search(text)
    return None if found is None else found.start()


def is_visible(text: str) -> bool:
    """Whether anything of a text can be seen: not only white space, control and format characters (zero-width spaces,
    byte order marks) and fillers that are drawn as nothing."""
    return any(
        not c.isspace() and c not in BLANK and unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn") for c in text
    )


def shell_word(text: str) -> str:
    """A text as it is written on a command line of bash or zsh: as it is where that is enough, else in quotes, and on
    one line whatever it holds (`$'a\\nb'`)."""
    if all(c.isprintable() for c in text):
        return shlex.quote(text)
    kept = "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in text)
    return f"$'{kept}'"


def _escaped(c: str) -> str:
    return f"\\{c}" if c in "\\'" else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))

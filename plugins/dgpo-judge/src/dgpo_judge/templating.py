"""Templates of questions: text files with placeholders such as {prompt}."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path

from dgpo_core.errors import UserError

__all__ = ["DIGESTS", "Template", "read_template"]

LARGEST = 2**16
"""Most bytes of a template file."""
NAMES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "vqascore": (frozenset({"prompt"}), frozenset({"medium"})),
    "soft-tifa": (frozenset({"question"}), frozenset({"prompt", "medium"})),
    "rating": (frozenset({"prompt"}), frozenset({"low", "high", "medium"})),
    "rubric": (frozenset({"prompt", "aspects"}), frozenset({"medium"})),
    "rubric-lines": (frozenset({"prompt", "aspects"}), frozenset({"medium"})),
    "reading": (frozenset(), frozenset({"medium"})),
    "pairs": (frozenset({"prompt"}), frozenset({"medium"})),
    "list": (frozenset({"prompt"}), frozenset({"letters", "count", "medium"})),
}
"""Placeholders that a template of each form must have, and those that it may have."""
DIGESTS: Mapping[str, str] = {
    "list": "101bf8b740fde0aa12a26c96a34509358fb9f1f5eae828924939f40b5d605d7f",
    "pairs": "392e69dc0cebecd7458e9954b12a97cb46f8bfb6649e76be7e28d75b9e507a3a",
    "rating": "604dfc5a87af0776861d356ed846ee4129a45a700f6a64cd55c8de1c590ba5a0",
    "reading": "e0ff66814d98afbbdefdd6ae323b0d11dd17659216afa0490cd7aedd64aa4451",
    "rubric-lines": "1ae638b56f46ac83dec1ed9a75f904187bc74bef9ddcded9cb180089be0532d6",
    "rubric": "5c4e57f5c28b4f5ba1b7dc7e4996693544fb95b6d2de1e2bdf63d6b570593015",
    "soft-tifa": "0bb015599140a91f06e90b829d0888b3c3df66d8760986a9b8e26aa1cf1db10c",
    "vqascore": "c15ed639100482348186bd8baa61f7d95fc77335accdd2311665697ede4762dd",
}
"""SHA-256 of the plugin's own templates: a changed template is another reward."""


class Template:
    """A parsed template. digest: SHA-256 of its text."""

    def __init__(self, text: str, form: str, where: str) -> None:
        """where: names the file in messages. Raises UserError, in one sentence, for a wrong placeholder."""
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        must, may = NAMES[form]
        try:
            self._pieces = [(piece[0], piece[1]) for piece in _parsed(text)]
        except ValueError as error:
            raise UserError(f"{where}: {error}; write a brace that is meant as such twice: {{{{ or }}}}") from error
        used = {name for _, name in self._pieces if name is not None}
        allowed = _listed(must | may)
        for name in sorted(used - must - may):
            raise UserError(
                f"{where}: the placeholder {{{name}}} is not known to a template for {form}; allowed are {allowed}, "
                "and braces that are meant as such are written twice"
            )
        for name in sorted(must - used):
            raise UserError(
                f"{where}: lacks the placeholder {{{name}}}, without which the judge would not know what to judge by; "
                f"allowed are {allowed}"
            )

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the text with the placeholders replaced; values may contain braces."""
        return "".join(text + ("" if name is None else values[name]) for text, name in self._pieces)


def read_template(form: str, path: str | None) -> Template:
    """Read the user's template, or the plugin's own. Raises UserError if it cannot be read."""
    if path is None:
        text = resources.files("dgpo_judge.templates").joinpath(f"{form}.txt").read_text(encoding="utf-8")
        return Template(text.strip(), form, f"the template {form}.txt of dgpo-judge")
    where = f"template: {Path(path).absolute()}"
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise UserError(f"{where}: is larger than {LARGEST >> 10} KiB; a template is the question alone")
    try:
        return Template(data.decode("utf-8-sig").strip(), form, where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text: byte {error.start + 1} is invalid; save it as UTF-8") from error


def _parsed(text: str) -> list[tuple[str, str | None]]:
    """Return (text, placeholder behind it or None) of each piece. Raises ValueError."""
    pieces: list[tuple[str, str | None]] = []
    for before, name, spec, conversion in string.Formatter().parse(text):
        if name is not None and (spec or conversion or not name.isidentifier()):
            raise ValueError(f"{{{name}{'!' if conversion else ':' if spec else ''}...}} is not a placeholder")
        pieces.append((before, name))
    return pieces


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))

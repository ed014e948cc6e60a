"""Paths in files that people write: `~` is the home directory, and fields that hold a path can be told from others.

A field is declared as `PathText` if it always holds a path, and as `PathOrName` if it may also hold a name, such as
that of a Hub repository. Plugins' options do likewise. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from dgpo_schemas.annotations import items_of, models_of, plain
from dgpo_schemas.problems import KeyPath

__all__ = [
    "FileOrTag",
    "PathOrName",
    "PathText",
    "Place",
    "Program",
    "SchemedPath",
    "absolute",
    "expand_home",
    "places",
]

SCHEME = "local-dir:"
"""open_clip's way to say that a path follows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Marks a field that may hold a path, and tells how a path is known: it always is one; if something is there; if a
    file is there; if it has a slash, as shells do it; if a scheme says so."""

    known_by: Literal["always", "being there", "file", "slash", "scheme"] = "always"

    def holds_path(self, text: str, start: Path) -> bool:
        """Whether a text in this place, its scheme taken off, is a path; a relative one begins at `start`."""
        match self.known_by:
            case "always":
                return True
            case "being there":
                return (start / text).exists()
            case "file":
                return (start / text).is_file()
            case "slash":
                return "/" in text
            case "scheme":
                return False


def expand_home(text: str) -> str:
    """`~` and `~user` at the beginning as home directories. Raises ValueError for a user whose home is not known, and
    for a text that no path can be."""
    if "\0" in text:
        raise ValueError(f"{text!r}: no path holds a zero character")
    scheme, text = _split(text)
    if not text.startswith("~"):
        return scheme + text
    found = os.path.expanduser(text)
    if found.startswith("~"):
        user = text[1:].split("/")[0]
        raise ValueError(
            f"{text!r}: the home directory of {user or 'this user'} is not known; for a file or directory "
            f"that is called so, write ./{text}"
        )
    return scheme + found


PathText = Annotated[str, AfterValidator(expand_home), Place()]
"""A path."""
PathOrName = Annotated[str, AfterValidator(expand_home), Place("being there")]
"""A path if there is a file or directory, else a name."""
FileOrTag = Annotated[str, AfterValidator(expand_home), Place("file")]
"""A path if there is a file, else a name."""
Program = Annotated[str, AfterValidator(expand_home), Place("slash")]
"""A path if it has a slash, else a program on PATH."""
SchemedPath = Annotated[str, AfterValidator(expand_home), Place("scheme")]
"""A path after `local-dir:`, else a name."""


def absolute(text: str, place: Place, start: Path | None = None) -> str:
    """A path as seen from `start`, by default the working directory. A name stays a name."""
    scheme, text = _split(text)
    start = start or Path.cwd()
    if Path(text).is_absolute() or not (scheme or place.holds_path(text, start)):
        return scheme + text
    parts = (start / text).parts
    up = max((i for i, part in enumerate(parts) if part == ".."), default=-1) + 1
    # Links stay, for an environment's interpreter is one; but what `..` goes up from may be gone tomorrow.
    return scheme + str(Path(*parts[:up]).resolve() / Path(*parts[up:]) if up else Path(*parts))


def _split(text: str) -> tuple[str, str]:
    return (SCHEME, text.removeprefix(SCHEME)) if text.startswith(SCHEME) else ("", text)


def places(model: BaseModel | type[BaseModel], data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Place]]:
    """Where data of a model hold paths: key paths to texts."""
    for name, field in (model if isinstance(model, type) else type(model)).model_fields.items():
        if name in data:
            marks: list[Any] = [field.annotation, *field.metadata]
            yield from _within(marks, data[name], (name,))


def _within(annotations: list[Any], value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Place]]:
    if isinstance(value, str):
        marks = (one for annotation in annotations for one in plain(annotation) if isinstance(one, Place))
        yield from ((path, mark) for mark in islice(marks, 1))
    elif isinstance(value, dict):
        for model in (one for annotation in annotations for one in models_of(annotation)):
            yield from ((path + inner, mark) for inner, mark in places(model, value))
    elif isinstance(value, list):
        items = [one for annotation in annotations for one in items_of(annotation)]
        for number, item in enumerate(value):
            yield from _within(items, item, (*path, number))

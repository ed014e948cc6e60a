"""Field types for paths in run files and plugin options.

Declare a field as `PathText` if it always holds a path, and as `PathOrName` if it may also hold a name, such as a Hub
repository. `~` is expanded to the home directory. Relative paths are relative to the current working directory.
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
"""open_clip's prefix for local paths."""


@dataclass(frozen=True, slots=True)
class Place:
    """Annotation of a field that may hold a path. `known_by` states when its value is a path: always; if a file or
    directory exists there; if a file exists there; if it contains a slash (as in shells); if it has a scheme."""

    known_by: Literal["always", "being there", "file", "slash", "scheme"] = "always"

    def holds_path(self, text: str, start: Path) -> bool:
        """Return whether a value without its scheme is a path. Relative paths are resolved against `start`."""
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
    """Expand a leading `~` or `~user` to the home directory.

    Raises ValueError if the home directory is not known, and for a text that contains a null character.
    """
    if "\0" in text:
        raise ValueError(f"{text!r}: a path cannot contain a null character")
    scheme, text = _split(text)
    if not text.startswith("~"):
        return scheme + text
    found = os.path.expanduser(text)
    if found.startswith("~"):
        user = text[1:].split("/")[0]
        raise ValueError(
            f"{text!r}: the home directory of {user or 'this user'} is not known; for a file or directory with this "
            f"name, write ./{text}"
        )
    return scheme + found


PathText = Annotated[str, AfterValidator(expand_home), Place()]
"""A path."""
PathOrName = Annotated[str, AfterValidator(expand_home), Place("being there")]
"""A path if a file or directory exists there, otherwise a name."""
FileOrTag = Annotated[str, AfterValidator(expand_home), Place("file")]
"""A path if a file exists there, otherwise a name."""
Program = Annotated[str, AfterValidator(expand_home), Place("slash")]
"""A path if it contains a slash, otherwise a program on PATH."""
SchemedPath = Annotated[str, AfterValidator(expand_home), Place("scheme")]
"""A path if it starts with `local-dir:`, otherwise a name."""


def absolute(text: str, place: Place, start: Path | None = None) -> str:
    """Make a path absolute, relative to `start` or the current working directory. A name is returned unchanged."""
    scheme, text = _split(text)
    start = start or Path.cwd()
    if Path(text).is_absolute() or not (scheme or place.holds_path(text, start)):
        return scheme + text
    parts = (start / text).parts
    up = max((i for i, part in enumerate(parts) if part == ".."), default=-1) + 1
    # Keep symbolic links, since a virtual environment's interpreter is one, but resolve `..` components.
    return scheme + str(Path(*parts[:up]).resolve() / Path(*parts[up:]) if up else Path(*parts))


def _split(text: str) -> tuple[str, str]:
    return (SCHEME, text.removeprefix(SCHEME)) if text.startswith(SCHEME) else ("", text)


def places(model: BaseModel | type[BaseModel], data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Place]]:
    """Yield the key path and annotation of each path field in the data of a model."""
    for name, field in (model if isinstance(model, type) else type(model)).model_fields.items():
        if name in data:
            marks: list[Any] = [field.annotation, *field.metadata]
            yield from _within(marks, data[name], (name,))


def _within(annotations: list[Any], value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Place]]:
    if isinstance(value, str):
        marks = (mark for annotation in annotations for mark in plain(annotation) if isinstance(mark, Place))
        yield from ((path, mark) for mark in islice(marks, 1))
    elif isinstance(value, dict):
        for model in (model for annotation in annotations for model in models_of(annotation)):
            yield from ((path + inner, mark) for inner, mark in places(model, value))
    elif isinstance(value, list):
        items = [item for annotation in annotations for item in items_of(annotation)]
        for number, item in enumerate(value):
            yield from _within(items, item, (*path, number))

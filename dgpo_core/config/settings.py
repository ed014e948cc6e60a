"""Set values at dotted keys of a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dgpo_core.errors import UserError
from dgpo_schemas.loading import Document, Position
from dgpo_schemas.problems import INDEX, ConfigError, KeyPath, Problem, dotted, explain, show

__all__ = ["apply_settings", "checked_section", "put"]

Section = TypeVar("Section", bound=BaseModel)

_SHORT_FORMS = {"use": "use", "options": "use", "file": "file", "limit": "file"}
"""Key set inside a string -> key of the string's long form: `sampler: flow-euler` is `sampler: {use: flow-euler}`."""


def checked_section(model: type[Section], **values: Any) -> Section:
    """Create a section from keyword arguments. Raises UserError naming the argument and the allowed values."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = explain(model, values, error)
        raise UserError("\n".join(f"{dotted(path)}: {message}" for path, message in found)) from error


def apply_settings(document: Document, settings: Sequence[tuple[str, Any, Position]]) -> Document:
    """Return the document with values set at dotted keys. Later mistakes in a value are reported at its position.

    Raises ConfigError with every key that cannot be set.
    """
    changed = Document(document.source, deepcopy(document.data), dict(document.positions))
    problems: list[Problem] = []
    for key, value, position in settings:
        try:
            put(changed, key, deepcopy(value), [()], position)
        except ValueError as error:
            problems.append(Problem(position.text, key, str(error)))
    if problems:
        raise ConfigError(problems)
    return changed


def put(document: Document, key: str, value: Any, inner: Iterable[KeyPath], position: Position) -> None:
    """Set a dotted key of the document in place. inner: the paths within the value: (), ("use",) and so on.

    Raises ValueError for a key that cannot be set.
    """
    names = key.split(".")
    if not all(names):
        raise ValueError("must be a dotted key, such as optimizer.learning_rate")
    here: Any = document.data
    path: KeyPath = ()
    for i, name in enumerate(names):
        component = _component(here, name, path)
        path = (*path, component)
        if i == len(names) - 1:
            break
        if isinstance(here, dict) and here.get(name) is None:
            here[name] = {}
            document.positions[path] = position
        elif isinstance(here, list) and component == len(here):
            here.append({})
            document.positions[path] = position
        elif isinstance(here[component], str) and names[i + 1] in _SHORT_FORMS:
            here[component] = {_SHORT_FORMS[names[i + 1]]: here[component]}
        here = here[component]
    if isinstance(here, list) and path[-1] == len(here):
        here.append(value)
    else:
        here[path[-1]] = value
    for old in [known for known in document.positions if known[: len(path)] == path]:
        del document.positions[old]
    for known in inner:
        document.positions[path + known] = position


def _component(here: Any, name: str, path: KeyPath) -> str | int:
    """Return the name as a key of a mapping or as an index of a list."""
    if isinstance(here, dict):
        return name
    if not isinstance(here, list):
        raise ValueError(f"{dotted(path)} is {show(here)}; it has no key {name!r}")
    if not INDEX.fullmatch(name) or int(name) > len(here):
        entries = f"0 to {len(here) - 1}" if here else "none"
        raise ValueError(
            f"{dotted(path)} is a list; {name!r} is not one of its indices ({entries}; {len(here)} appends)"
        )
    return int(name)

"""Names of the values of options in help texts: FILE, TEXT and N instead of Typer's `<int range>` or `<list[str]>`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

__all__ = ["name_values"]

NAMES = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


def name_values(target: Any) -> None:
    """Set the metavar of every option without one, of a command's function or of all commands of an application."""
    commands = target.registered_commands if isinstance(target, typer.Typer) else ()
    for function in [command.callback for command in commands] or [target]:
        if function is not None:
            _name_values(function)


def _name_values(function: Callable[..., Any]) -> None:
    hints = get_type_hints(function, include_extras=True)
    for hint in hints.values():
        if get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            for option in extras:
                if isinstance(option, OptionInfo) and option.metavar is None:
                    option.metavar = _name(kind)
    function.__annotations__ = hints  # Typer would evaluate annotations that are strings again


def _name(kind: Any) -> str | None:
    """Return the name of a type, of the items of a list, and of the type that `T | None` allows; None for others."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(choice.value) for choice in kind)
    names = [_name(inner) for inner in get_args(kind)]
    return NAMES.get(kind) or next(filter(None, names), None)

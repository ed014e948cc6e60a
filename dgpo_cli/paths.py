"""Expand `~` in options and arguments that are paths.

A shell expands it only at the beginning of a word, so not in `--output=~/images`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

__all__ = ["at_home", "with_home"]


def at_home(value: Any) -> Any:
    """Expand `~` and `~user` in a path or a list of paths; return other values unchanged.

    Raises UserError if the home directory is unknown.
    """
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if not isinstance(value, Path) or not str(value).startswith("~"):
        return value
    from dgpo_core.errors import UserError
    from dgpo_schemas.places import expand_home

    try:
        return Path(expand_home(str(value)))
    except ValueError as error:
        raise UserError(str(error)) from None


def with_home(target: Any) -> Any:
    """Wrap a command's function, or those of an application, so that `~` in its paths is expanded."""
    if isinstance(target, typer.Typer):
        for command in target.registered_commands:
            if command.callback is not None and not hasattr(command.callback, "__wrapped__"):
                command.callback = _wrapped(command.callback)
        return target
    return _wrapped(target)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def command(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **{name: at_home(value) for name, value in keywords.items()})

    return command

"""`~` in every option and argument that is a path.

A shell expands it at the beginning of a word alone: not in `--output=~/images`, and not what a program passes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

__all__ = ["at_home", "with_home"]


def at_home(value: Any) -> Any:
    """A path, or the paths in a list, with `~` and `~user` replaced; everything else as it is.

    Raises UserError for a user whose home directory is not known.
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
    """A command's function, or an application of such, that is given paths without `~`."""
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

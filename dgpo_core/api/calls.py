"""What every call of the Python API has: messages that name keywords, and arguments that are checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from dgpo_core.errors import UserError
from dgpo_core.system.spelling import in_python, option
from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.places import expand_home
from dgpo_schemas.problems import ConfigError

__all__ = [
    "Overrides",
    "at_least_one",
    "check_accept",
    "check_seed",
    "from_python",
    "path_of",
    "settings_of",
    "sides_of",
    "sides_of_text",
]

P = ParamSpec("P")
T = TypeVar("T")

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Settings by dotted key, {"rollout.groups": 2}, or as texts, ["rollout.groups=2"]."""


def from_python(function: Callable[P, T]) -> Callable[P, T]:
    """A function of the Python API: its messages name keywords, and what is wrong with a file is a UserError too."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with in_python():
            try:
                return function(*args, **kwargs)
            except ConfigError as error:
                raise UserError(str(error)) from error

    return called


def settings_of(overrides: Overrides) -> list[str]:
    """Overrides as `KEY=VALUE`. Raises UserError for a value that no run file can hold."""
    if isinstance(overrides, str | bytes) or not isinstance(overrides, Mapping | Sequence):
        raise UserError("overrides: must be a dict of settings, or a list of KEY=VALUE")
    if not isinstance(overrides, Mapping):
        if not all(isinstance(one, str) for one in overrides):
            raise UserError("overrides: must be a dict of settings, or a list of KEY=VALUE")
        return list(overrides)
    found = []
    for key, value in overrides.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise UserError(f"override {key}: a run file cannot hold {value!r}: {error}") from error
        found.append(f"{key}={text}")
    return found


def _plain(value: Any) -> str:
    if isinstance(value, PathLike):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not text, number, list or dict")


def path_of(path: str | PathLike[str]) -> Path:
    """A path with `~` replaced. Raises UserError for a user whose home directory is not known."""
    if not isinstance(path, str | PathLike):
        raise UserError(f"{path!r}: must be a path, not {type(path).__name__}")
    try:
        return Path(expand_home(str(Path(path))))
    except ValueError as error:
        raise UserError(str(error)) from None


def at_least_one(**values: object) -> None:
    """Raise UserError for a number below 1, and for what is no number; None is not given."""
    for name, value in values.items():
        whole = name != "guidance"
        number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf
        if value is not None and not (number and (isinstance(value, int) or not whole)):
            raise UserError(f"{name}={value!r}: must be {'an integer' if whole else 'a number'} of at least 1")


def check_seed(seed: object, *, required: bool = False) -> None:
    """Raise UserError for a seed that is not an integer; None is not given. A text would draw other noise."""
    if (required or seed is not None) and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UserError(f"seed={seed!r}: must be an integer")


def check_accept(accept: object, allowed: Sequence[str]) -> None:
    """Raise UserError for what cannot be accepted."""
    if isinstance(accept, str) or not isinstance(accept, Collection) or not set(accept) <= set(allowed):
        raise UserError(f"accept={accept!r}: must be a list with {' or '.join(map(repr, allowed))}")


def sides_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a side or of both. Raises UserError."""
    if size is None:
        return None
    sides: Sequence[object] = size if isinstance(size, tuple | list) else (size, size)
    whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    if len(sides) != 2 or len(whole) != 2:
        raise UserError(f"size={size!r}: must be a side in pixels, such as 768, or (height, width)")
    return _checked((whole[0], whole[1]), repr(size))


def sides_of_text(text: str | None) -> tuple[int, int] | None:
    """(height, width) of what was typed: 768, or 768x1024. Raises UserError."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch("[0-9]{1,5}", side) for side in sides):
        raise UserError(
            f"{option('size')}: {text!r} is no size in pixels: give a side, such as 768, or HEIGHTxWIDTH, 768x1024"
        )
    return _checked((int(sides[0]), int(sides[-1])), text)


def _checked(sides: tuple[int, int], shown: str) -> tuple[int, int]:
    if not all(0 < side <= LONGEST_SIDE for side in sides):
        raise UserError(f"{option('size')}: {shown}: a side has from 1 to {LONGEST_SIDE} pixels")
    return sides

"""Checks of arguments of the Python API, whose messages name the keyword."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, SupportsFloat, TypeAlias, TypeVar

from dgpo_core.errors import UserError
from dgpo_core.system.spelling import in_python, option
from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.places import expand_home
from dgpo_schemas.problems import ConfigError

__all__ = [
    "Overrides",
    "check_accept",
    "check_callbacks",
    "check_format",
    "checked_guidance",
    "checked_seed",
    "from_python",
    "path_of",
    "positive",
    "settings_of",
    "sides_of",
    "sides_of_text",
]

P = ParamSpec("P")
T = TypeVar("T")

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Settings by dotted key, {"rollout.groups": 2}, or as strings, ["rollout.groups=2"]."""


def from_python(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of the Python API: messages name keywords, and a ConfigError becomes a UserError."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with in_python():
            try:
                return function(*args, **kwargs)
            except ConfigError as error:
                raise UserError(str(error)) from error

    return called


def settings_of(overrides: Overrides) -> list[str]:
    """Return the overrides as `KEY=VALUE`. Raises UserError for a value that a run file cannot contain."""
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


def _plain(value: Any) -> str | int:
    if isinstance(value, PathLike):
        return str(value)
    if (number := _integer(value)) is not None:
        return number
    raise TypeError(f"{type(value).__name__} is not a string, number, list or dict")


def _integer(value: Any) -> int | None:
    """Return an integer, such as one of numpy, as an int; None for anything else, booleans included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def path_of(path: str | PathLike[str]) -> Path:
    """Return the path with `~` expanded. Raises UserError if the home directory is unknown."""
    if not isinstance(path, str | PathLike):
        raise UserError(f"{path!r}: must be a path, not {type(path).__name__}")
    try:
        return Path(expand_home(str(Path(path))))
    except ValueError as error:
        raise UserError(str(error)) from None


def positive(**values: object) -> list[Any]:
    """Return the values as ints, in order; None stays. Raises UserError for anything but an integer of at least 1."""
    found: list[Any] = []
    for name, value in values.items():
        number = _integer(value)
        if value is not None and (number is None or number < 1):
            raise UserError(f"{name}={value!r}: must be an integer of at least 1")
        found.append(number)
    return found


def checked_guidance(guidance: object) -> float | None:
    """Return a guidance scale. Raises UserError for anything but a finite number of at least 1; None stays."""
    if guidance is None:
        return None
    number = float(guidance) if isinstance(guidance, SupportsFloat) and isinstance(guidance, Real) else math.nan
    if isinstance(guidance, bool) or not 1 <= number < math.inf:
        raise UserError(f"guidance={guidance!r}: must be a number of at least 1")
    return guidance if isinstance(guidance, int | float) else number


def checked_seed(seed: object) -> int:
    """Return a seed as an int. Raises UserError for anything but an integer: other types would draw other noise."""
    number = _integer(seed)
    if number is None:
        raise UserError(f"seed={seed!r}: must be an integer")
    return number


def check_accept(accept: object, allowed: Sequence[str]) -> None:
    """Raise UserError unless `accept` is a list of allowed values."""
    if isinstance(accept, str) or not isinstance(accept, Collection) or not set(accept) <= set(allowed):
        raise UserError(f"accept={accept!r}: must be a list with {' or '.join(map(repr, allowed))}")


def check_callbacks(callbacks: object) -> None:
    """Raise UserError unless `callbacks` is a list of Callback instances."""
    from dgpo_core.training.callbacks import Callback

    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise UserError(f"callbacks: must be a list of Callback instances, got {type(callbacks).__name__}")
    for i, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else type(callback).__name__
            raise UserError(f"callbacks[{i}]: must be a Callback instance, got {what}")


def check_format(format: object) -> None:
    """Raise UserError for an export format that is not a string; None is the default format."""
    if format is not None and not isinstance(format, str):
        raise UserError(f"format={format!r}: must be a string, such as 'diffusers'")


def sides_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a square's side or of both sides. Raises UserError."""
    if size is None:
        return None
    sides: Sequence[object] = size if isinstance(size, tuple | list) else (size, size)
    integers = [side for side in map(_integer, sides) if side is not None]
    if len(sides) != 2 or len(integers) != 2:
        raise UserError(f"size={size!r}: must be a side in pixels, such as 768, or (height, width)")
    return _checked((integers[0], integers[1]), repr(size))


def sides_of_text(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of a size on the command line, 768 or 768x1024. Raises UserError."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch("[0-9]{1,5}", side) for side in sides):
        raise UserError(
            f"{option('size')}: {text!r} is not a size in pixels; give a side, such as 768, or HEIGHTxWIDTH, 768x1024"
        )
    return _checked((int(sides[0]), int(sides[-1])), text)


def _checked(sides: tuple[int, int], shown: str) -> tuple[int, int]:
    if not all(0 < side <= LONGEST_SIDE for side in sides):
        raise UserError(f"{option('size')}: {shown}: a side must be from 1 to {LONGEST_SIDE} pixels")
    return sides

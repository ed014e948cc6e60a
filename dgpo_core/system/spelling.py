"""Format arguments in messages: as options on the command line, as keyword arguments in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["arguments", "in_python", "option", "override", "setting"]

FLAGS: Mapping[str, str] = {"directory": "--output", "overrides": "--set"}
"""Options whose names differ from the keyword."""
_PYTHON: ContextVar[bool] = ContextVar("dgpo is called from Python", default=False)


@contextmanager
def in_python() -> Iterator[None]:
    """Make messages within the context name keyword arguments of Python instead of options of `dgpo`."""
    token = _PYTHON.set(True)
    try:
        yield
    finally:
        _PYTHON.reset(token)


def option(name: str, value: object = None) -> str:
    """Format an argument with an optional value: `--micro-batch 4`, or `micro_batch=4`.

    True formats a flag: `--resume`, or `resume=True`. Paths are formatted as strings.
    """
    if _PYTHON.get():
        return name if value is None else f"{name}={value if isinstance(value, int | float) else repr(str(value))}"
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    return flag if value is None or value is True else f"{flag} {value}"


def arguments(**values: object) -> str:
    """Format several arguments of a call: `--resume --accept logs`, or `resume=True, accept='logs'`."""
    return (", " if _PYTHON.get() else " ").join(option(name, value) for name, value in values.items())


def setting(key: str, value: str) -> str:
    """Format an override: `--set KEY=VALUE`, or `overrides={'KEY': VALUE}`."""
    return f"overrides={{{key!r}: {value}}}" if _PYTHON.get() else f"--set {key}={value}"


def override() -> str:
    """Return the prefix of an overridden setting in the location of a message: `--set` or `override`."""
    return "override" if _PYTHON.get() else "--set"

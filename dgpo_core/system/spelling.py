"""How the caller writes an argument: messages name an option on the command line and a keyword in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["arguments", "in_python", "option", "override", "setting"]

FLAGS: Mapping[str, str] = {"directory": "--output", "overrides": "--set"}
"""Options that have another name than the keyword."""
_PYTHON: ContextVar[bool] = ContextVar("dgpo is called from Python", default=False)


@contextmanager
def in_python() -> Iterator[None]:
    """Messages inside name keywords of Python; elsewhere they name options of `dgpo`."""
    token = _PYTHON.set(True)
    try:
        yield
    finally:
        _PYTHON.reset(token)


def option(name: str, value: object = None) -> str:
    """An argument, with its value if there is one: `--micro-batch 4`, or `micro_batch=4`.

    True stands for an option without a value: `--resume`, or `resume=True`. Paths are shown as text.
    """
    if _PYTHON.get():
        return name if value is None else f"{name}={value if isinstance(value, int | float) else repr(str(value))}"
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    return flag if value is None or value is True else f"{flag} {value}"


def arguments(**values: object) -> str:
    """Several arguments of one call: `--resume --accept logs`, or `resume=True, accept='logs'`."""
    return (", " if _PYTHON.get() else " ").join(option(name, value) for name, value in values.items())


def setting(key: str, value: str) -> str:
    """A changed setting: `--set KEY=VALUE`, or `overrides={'KEY': VALUE}`."""
    return f"overrides={{{key!r}: {value}}}" if _PYTHON.get() else f"--set {key}={value}"


def override() -> str:
    """What stands before a setting that was overridden, where a message gives its place: `--set` or `override`."""
    return "override" if _PYTHON.get() else "--set"

"""Code of plugins while it is imported: what it prints, throws, changes or ends stays its own affair. No torch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import locale
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, NoReturn

from dgpo_core.errors import ContractError, PluginError
from dgpo_schemas.text import error_text

__all__ = ["READ", "RESTORE", "Exited", "ctrl_c", "imported", "isolated", "no_exit", "printing_aside", "reported"]

log = logging.getLogger(__name__)
SLOW = 20.0
"""Seconds of an import after which it is said whose it is: one that never ends would look like a hang of ours."""
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE")
    if hasattr(signal, name)
)


class Exited(BaseException):
    """A plugin wanted to end the process with `os._exit`."""


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed meanwhile: a plugin may raise KeyboardInterrupt too, and then it means itself. Only
    the main thread hears of the key."""
    before = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if before is None or not callable(before):
        yield lambda: False
        return
    pressed = threading.Event()
    handler = before

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class _Aside:
    """Standard error under another name: closing or detaching it closes nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        """To standard error, if there is one."""
        return sys.stderr.write(text) if sys.stderr is not None else len(text)

    def flush(self) -> None:
        """Of standard error."""
        if sys.stderr is not None:
            sys.stderr.flush()

    def close(self) -> None:
        """It is not ours to close."""


@contextmanager
def printing_aside() -> Iterator[None]:
    """What is printed goes to standard error, also by C libraries and child processes: standard output is for
    results."""
    saved = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(_Aside()):
            yield
    finally:
        if saved is not None:
            with contextlib.suppress(OSError):
                os.dup2(saved, 1)
            os.close(saved)


_real_exit = os._exit
_guarded = threading.local()
_everywhere = threading.Event()


def _exit(status: int) -> NoReturn:
    if os.getpid() == getattr(_guarded, "process", None) or _everywhere.is_set():
        raise Exited(f"os._exit({status})")
    _real_exit(status)


@contextmanager
def no_exit(*, everywhere: bool = False) -> Iterator[None]:
    """`os._exit` raises Exited in this thread, or in every one: it would end the command with nothing said, and with
    the status 0 if it likes. Not in a child that was forked, which must end so."""
    os._exit = _exit  # stays: others hold on to it by then, and outside of this it is what it was
    before = getattr(_guarded, "process", None)
    _guarded.process = os.getpid()
    if everywhere:
        _everywhere.set()
    try:
        yield
    finally:
        _guarded.process = before
        if everywhere:
            _everywhere.clear()


READ: Mapping[str, Callable[[], Any]] = {
    "the working directory": os.getcwd,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the level at which logging is disabled": lambda: logging.root.manager.disable,
}
"""What a process has one of, with or without torch, by the name that messages give it. May raise OSError (a directory
that is gone) or locale.Error."""
RESTORE: Mapping[str, Callable[[Any], object]] = {
    "the working directory": os.chdir,
    "the locale": lambda value: locale.setlocale(locale.LC_ALL, value),
    "the level at which logging is disabled": logging.disable,
}


def _state() -> dict[str, Any]:
    """What an import may change for all, by name."""
    found: dict[str, Any] = {}
    for name, read in READ.items():
        with contextlib.suppress(OSError, locale.Error):
            found[name] = read()
    if threading.current_thread() is threading.main_thread():
        found["the handlers of signals"] = {number: signal.getsignal(number) for number in SIGNALS}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_default_dtype"):
        found["torch's default dtype"] = torch.get_default_dtype()
        found["torch's default device"] = torch.get_default_device()
        found["torch's gradients"] = torch.is_grad_enabled()
    return found


def _set_signals(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _put_back(name: str, value: Any) -> None:
    torch = sys.modules.get("torch")
    restore: dict[str, Callable[[Any], object]] = {**RESTORE, "the handlers of signals": _set_signals}
    if torch is not None:
        restore |= {
            "torch's default dtype": torch.set_default_dtype,
            "torch's default device": lambda v: torch.set_default_device(None if str(v) == "cpu" else v),
            "torch's gradients": torch.set_grad_enabled,
        }
    with contextlib.suppress(OSError, ValueError, RuntimeError, locale.Error):
        restore[name](value)


def _as_imported() -> dict[str, Any]:
    """The state of a torch that nobody has changed."""
    torch: Any = sys.modules["torch"]
    return {
        "torch's default dtype": torch.float32,
        "torch's default device": torch.device("cpu"),
        "torch's gradients": True,
    }


def _path_put_back(before: list[str]) -> bool:
    """Whether sys.path was changed: what is new comes last, where it hides nothing of others."""
    if not isinstance(sys.path, list) or sys.path[: len(before)] != before:
        added = [entry for entry in list(sys.path) if entry not in before]
        sys.path = [*before, *added]
        return True
    return False


@contextmanager
def isolated(who: str, doing: str = "was imported") -> Iterator[Callable[[], bool]]:
    """Around the import of a plugin and the calls of its hooks; `who` names it in messages: "plugin x of dist 1".

    What it prints goes to standard error, what it leaves changed for all is put back and named, `os._exit` raises
    Exited. Yields whether Ctrl-C was pressed. What it raises is passed on.
    """
    slow = threading.Timer(SLOW, log.warning, ("%s has not returned for %g s since it %s", who, SLOW, doing))
    slow.daemon = True
    slow.start()
    with ctrl_c() as pressed:
        streams, before, path = (sys.stdout, sys.stderr, sys.excepthook), _state(), list(sys.path)
        try:
            with printing_aside(), no_exit():
                yield pressed
        finally:
            slow.cancel()
            sys.stdout, sys.stderr, sys.excepthook = streams
            changed = _what_is_put_back(before, path)
            if changed:
                log.warning("%s has changed %s when it %s: that is put back", who, " and ".join(changed), doing)


def _what_is_put_back(before: dict[str, Any], path: list[str]) -> list[str]:
    after = _state()
    if "torch's default dtype" in after and "torch's default dtype" not in before:
        before |= _as_imported()
    changed = [name for name, value in before.items() if after.get(name) != value]
    for name in changed:
        _put_back(name, before[name])
    return [*changed, *(["the beginning of sys.path"] if _path_put_back(path) else [])]


def imported(owner: str, path: str) -> Any:
    """What the dotted path of a declaration leads to. Raises PluginError, naming the owner, if it leads nowhere."""
    module, _, name = path.partition(":")
    pressed: Callable[[], bool] = bool
    try:
        with isolated(owner) as pressed:
            return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except BaseException as error:
        if pressed():
            log.warning("stopped while %s was imported", owner)
            raise
        if isinstance(error, ContractError):
            raise ContractError(f"{owner}: {error}") from error
        raise PluginError(f"{owner}: cannot import {path}: {reported(error)}") from error


def place_of(error: BaseException) -> str:
    """` (at FILE:LINE)` where an exception was raised, if that was neither in dgpo nor in the machinery of imports."""
    ours = os.path.dirname(os.path.dirname(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        machinery = os.path.join("importlib", "") in frame.filename or frame.filename == __file__
        if machinery or frame.filename.startswith("<frozen"):
            continue
        return "" if frame.filename.startswith(ours) else f" (at {frame.filename}:{frame.lineno})"
    return ""


def reported(error: BaseException) -> str:
    """What was raised, and where."""
    return f"{error_text(error)}{place_of(error)}"

"""Isolate the process from plugin code while it is imported: output, exceptions, process state, exits.

Does not import torch.
"""

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

__all__ = [
    "READ",
    "RESTORE",
    "Exited",
    "ctrl_c",
    "imported",
    "isolated",
    "no_exit",
    "printing_aside",
    "reported",
    "undone",
]

log = logging.getLogger(__name__)
SLOW = 60.0
"""Seconds after which a running import is logged with its plugin, so that a hanging import can be attributed."""
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGPIPE")
    if hasattr(signal, name)
)


class Exited(BaseException):
    """A plugin called `os._exit`."""


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed inside the context.

    Distinguishes the key from a KeyboardInterrupt that a plugin raises. Always False outside the main thread, which
    alone receives signals.
    """
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
    """A proxy of standard error that ignores `close`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        """Write to standard error, if there is one."""
        return sys.stderr.write(text) if sys.stderr is not None else len(text)

    def flush(self) -> None:
        """Flush standard error, if there is one."""
        if sys.stderr is not None:
            sys.stderr.flush()

    def close(self) -> None:
        """Do nothing: plugins must not close standard error."""


@contextmanager
def printing_aside() -> Iterator[None]:
    """Redirect standard output to standard error, including output of C libraries and child processes.

    Standard output is reserved for results.
    """
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
    """Make `os._exit` raise Exited in this thread, or in all threads, instead of ending the process silently.

    Forked children are not affected, because they have to exit with `os._exit`.
    """
    os._exit = _exit  # not restored: others may hold a reference, and outside the context it calls the original
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
"""Readers of process state that does not involve torch, by the name used in messages. Can raise OSError, if the working
directory was removed, or locale.Error."""
RESTORE: Mapping[str, Callable[[Any], object]] = {
    "the working directory": os.chdir,
    "the locale": lambda value: locale.setlocale(locale.LC_ALL, value),
    "the level at which logging is disabled": logging.disable,
}


def _state() -> dict[str, Any]:
    """Return the process state that an import can change, by name."""
    state: dict[str, Any] = {}
    for name, read in READ.items():
        with contextlib.suppress(OSError, locale.Error):
            state[name] = read()
    if threading.current_thread() is threading.main_thread():
        state["the signal handlers"] = {number: signal.getsignal(number) for number in SIGNALS}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_default_dtype"):
        state["torch's default dtype"] = torch.get_default_dtype()
        state["torch's default device"] = torch.get_default_device()
        state["torch's grad mode"] = torch.is_grad_enabled()
    return state


def _set_signals(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _restore(name: str, value: Any) -> None:
    torch = sys.modules.get("torch")
    restore: dict[str, Callable[[Any], object]] = {**RESTORE, "the signal handlers": _set_signals}
    if torch is not None:
        restore |= {
            "torch's default dtype": torch.set_default_dtype,
            "torch's default device": lambda v: torch.set_default_device(None if str(v) == "cpu" else v),
            "torch's grad mode": torch.set_grad_enabled,
        }
    with contextlib.suppress(OSError, ValueError, RuntimeError, locale.Error):
        restore[name](value)


def _torch_defaults() -> dict[str, Any]:
    """Return torch's state right after its import."""
    torch: Any = sys.modules["torch"]
    return {
        "torch's default dtype": torch.float32,
        "torch's default device": torch.device("cpu"),
        "torch's grad mode": True,
    }


def _restore_path(before: list[str]) -> bool:
    """Restore sys.path, with new entries moved to the end, where they shadow nothing. Return whether it had changed."""
    if not isinstance(sys.path, list) or sys.path[: len(before)] != before:
        added = [entry for entry in list(sys.path) if entry not in before]
        sys.path = [*before, *added]
        return True
    return False


@contextmanager
def isolated(who: str, doing: str = "was imported") -> Iterator[Callable[[], bool]]:
    """Isolate the import of a plugin and the calls of its hooks; `who` names it in messages: "plugin x of dist 1".

    Output goes to standard error, changed process state is restored and logged, and `os._exit` raises Exited.
    Exceptions propagate. Yields a function that returns whether Ctrl-C was pressed.
    """
    slow = threading.Timer(SLOW, log.warning, ("%s has not returned %g s after it %s", who, SLOW, doing))
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
            changed = _restore_state(before, path)
            if changed:
                log.warning("%s changed %s when it %s; the change is undone", who, " and ".join(changed), doing)


@contextmanager
def undone() -> Iterator[list[str]]:
    """Restore the process state that imports change; yields a list that receives the names of what had changed."""
    changed: list[str] = []
    streams, before, path = (sys.stdout, sys.stderr, sys.excepthook), _state(), list(sys.path)
    try:
        yield changed
    finally:
        if (sys.stdout, sys.stderr, sys.excepthook) != streams:
            sys.stdout, sys.stderr, sys.excepthook = streams
            changed.append("the standard streams")
        changed += _restore_state(before, path)


def _restore_state(before: dict[str, Any], path: list[str]) -> list[str]:
    """Restore the process state, and return the names of what had changed."""
    after = _state()
    if "torch's default dtype" in after and "torch's default dtype" not in before:
        before |= _torch_defaults()
    changed = [name for name, value in before.items() if after.get(name) != value]
    for name in changed:
        _restore(name, before[name])
    return [*changed, *(["the beginning of sys.path"] if _restore_path(path) else [])]


def imported(owner: str, path: str) -> Any:
    """Import the object at the dotted path of a declaration. Raises PluginError, naming the owner, if that fails."""
    module, _, name = path.partition(":")
    pressed: Callable[[], bool] = bool
    try:
        with isolated(owner) as pressed:
            return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except BaseException as error:
        if pressed():
            log.warning("interrupted while %s was imported", owner)
            raise
        if isinstance(error, ContractError):
            raise ContractError(f"{owner}: {error}") from error
        raise PluginError(f"{owner}: cannot import {path}: {reported(error)}") from error


def place_of(error: BaseException) -> str:
    """Return ` (at FILE:LINE)` of the innermost frame outside the import system, or "" if that frame is dgpo's."""
    ours = os.path.dirname(os.path.dirname(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        machinery = os.path.join("importlib", "") in frame.filename or frame.filename == __file__
        if machinery or frame.filename.startswith("<frozen"):
            continue
        return "" if frame.filename.startswith(ours) else f" (at {frame.filename}:{frame.lineno})"
    return ""


def reported(error: BaseException) -> str:
    """Describe an exception and where it was raised."""
    return f"{error_text(error)}{place_of(error)}"

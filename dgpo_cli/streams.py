"""Handle failures of standard output and standard error: a closed terminal, a closed pipe, a full disk.

If standard error fails, messages are lost and the command continues. If standard output fails, the command ends:
silently if the reader of a pipe is gone, with an error message otherwise.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from dgpo_core.errors import UserError
from dgpo_core.system.reading import why

__all__ = ["GONE", "guarded_errors", "guarded_output", "unheeded_output"]

GONE = 141
"""Exit code if the reader of standard output is gone: 128 + 13 (SIGPIPE), as in shells."""


class _Stream:
    """Proxy of a stream that handles its failures."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        encoding, errors = getattr(stream, "encoding", None), getattr(stream, "errors", None)
        exact = errors != "strict" and str(encoding).lower().startswith("utf")
        if errors is not None and not exact and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(
                    errors="backslashreplace"
                )  # a character outside the encoding must not end the command

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Any:
        """The underlying binary stream, wrapped too."""
        return type(self)(self._stream.buffer)

    def write(self, text: Any) -> int:
        """Write a text and return its length."""
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write the lines in order."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; False if it is closed."""
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError):
            return False

    def _failed(self, error: Exception) -> None:
        raise NotImplementedError


class _Discarding(_Stream):
    """Discards output that cannot be written, also if a signal handler interrupts another write."""

    def _failed(self, error: Exception) -> None:
        pass


class _Required(_Stream):
    """Ends the command if output cannot be written."""

    def _failed(self, error: Exception) -> None:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(GONE) from None
        if isinstance(error, OSError):
            raise UserError(f"cannot write to standard output: {why(error)}") from error
        if self._stream.closed:
            raise UserError("cannot write to standard output: it is closed") from error
        raise error


@contextlib.contextmanager
def guarded_errors() -> Iterator[None]:
    """Context manager for a command's standard error: output that cannot be written is discarded.

    Standard streams that are closed are opened on os.devnull: the next file that is opened would otherwise take their
    descriptor and receive the output of libraries.
    """
    _open_standard_streams()
    before = sys.stderr
    with _existing(before) as stream:
        sys.stderr = cast(TextIO, _Discarding(stream))
        try:
            yield
        finally:
            sys.stderr = before
            _drain(stream)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Context manager for standard output. Raises UserError if it fails, SystemExit if its reader is gone."""
    before = sys.stdout
    with _existing(before) as stream:
        sys.stdout = output = cast(TextIO, _Required(stream))
        try:
            try:
                yield
            except SystemExit as end:
                if not end.code and not output.closed:
                    output.flush()
                raise
            if not output.closed:
                output.flush()
        finally:
            sys.stdout = before
            _drain(stream)


@contextlib.contextmanager
def unheeded_output() -> Iterator[None]:
    """Context manager for a run, which does not need standard output: failed prints of plugins are discarded."""
    before = sys.stdout
    stream = getattr(before, "_stream", before)
    sys.stdout = cast(TextIO, _Discarding(stream))
    try:
        yield
    finally:
        sys.stdout = before
        _drain(stream)


@contextlib.contextmanager
def _existing(stream: TextIO | None) -> Iterator[TextIO]:
    """Yield the stream, or one to os.devnull if there is none."""
    if stream is not None:
        yield stream
        return
    with open(os.devnull, "w", encoding="utf-8") as null:
        yield null


def _open_standard_streams() -> None:
    """Open closed standard streams on os.devnull."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number, which is free


def _drain(stream: TextIO) -> None:
    """Flush a stream; redirect it to os.devnull if that fails, or the interpreter would report it at exit."""
    try:
        stream.flush()
    except ValueError:  # it is closed
        pass
    except OSError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()

"""Standard output and error that may go away: a closed terminal, a reader that has seen enough, a full disk.

What a command says on the way (standard error) is lost then, and nothing else. What it was called for (standard output)
cannot be delivered: the command ends, in silence where nobody reads any more, with a sentence where something failed.
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
"""Exit code where the reader of standard output is gone, as shells tell of SIGPIPE: 128 + 13."""


class _Stream:
    """A stream whose failures are dealt with. Everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        encoding, errors = getattr(stream, "encoding", None), getattr(stream, "errors", None)
        exact = errors != "strict" and str(encoding).lower().startswith("utf")
        if errors is not None and not exact and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # what an encoding does not have is no reason to end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Any:
        """The bytes below a text."""
        return type(self)(self._stream.buffer)

    def write(self, text: Any) -> int:
        """As the stream does; how much."""
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """One after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As the stream does."""
        try:
            self._stream.flush()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        """Whether it is a terminal; a closed one is none."""
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError):
            return False

    def _failed(self, error: Exception) -> None:
        raise NotImplementedError


class _Unheeded(_Stream):
    """What is written to it is lost where it cannot be written, or while a signal finds another write under way."""

    def _failed(self, error: Exception) -> None:
        pass


class _Product(_Stream):
    """Ends the command where it cannot be written."""

    def _failed(self, error: Exception) -> None:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(GONE) from None
        if isinstance(error, OSError):
            raise UserError(f"cannot write to standard output: {why(error)}") from error
        if self._stream.closed:
            raise UserError("cannot write to standard output: something has closed it") from error
        raise error


@contextlib.contextmanager
def guarded_errors() -> Iterator[None]:
    """A command's standard error: what cannot be written there is lost.

    Streams that were closed before the program began lead nowhere: the next file that is opened would take their place,
    and get whatever a library prints.
    """
    _occupy()
    before = sys.stderr
    with _there(before) as stream:
        sys.stderr = cast(TextIO, _Unheeded(stream))
        try:
            yield
        finally:
            sys.stderr = before
            _empty(stream)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """A command's standard output. Raises UserError, or SystemExit where nobody reads it, at the latest at the end."""
    before = sys.stdout
    with _there(before) as stream:
        sys.stdout = output = cast(TextIO, _Product(stream))
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
            _empty(stream)


@contextlib.contextmanager
def unheeded_output() -> Iterator[None]:
    """Standard output of a run, which does not depend on it: what a plugin prints may get lost."""
    before = sys.stdout
    stream = getattr(before, "_stream", before)
    sys.stdout = cast(TextIO, _Unheeded(stream))
    try:
        yield
    finally:
        sys.stdout = before
        _empty(stream)


@contextlib.contextmanager
def _there(stream: TextIO | None) -> Iterator[TextIO]:
    """The stream, or where there is none, one that leads nowhere."""
    if stream is not None:
        yield stream
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        yield nowhere


def _occupy() -> None:
    """Have the three standard streams lead somewhere."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number, which is free


def _empty(stream: TextIO) -> None:
    """Let a stream that cannot be written lead nowhere, or the interpreter would complain of it when it ends."""
    try:
        stream.flush()
    except ValueError:  # it is closed
        pass
    except OSError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()

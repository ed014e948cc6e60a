"""Stopping a run: SIGTERM and Ctrl-C ask for it, a second Ctrl-C insists."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "StopRequest"]


class Interrupted(Exception):
    """The run was asked to stop and is at a point where nothing of its state is half done."""


class StopRequest:
    """Whether a stop was asked for. The trainer checks it where the weights are those of a finished iteration, so an
    abandoned iteration is simply computed again after the resume, bit for bit."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask for a stop."""
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def on_signals(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while the context lasts; a second SIGINT raises KeyboardInterrupt at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.request()
            announce("stopping: saving the state; press Ctrl-C again to stop at once without saving")

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

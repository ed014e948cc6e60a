"""Progress messages during a wait: at its start, after a few seconds, and then periodically."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Waiting", "seconds", "so_far"]

log = logging.getLogger(__name__)

SECOND = 5.0
"""Seconds of waiting before the second message."""
EVERY = 30.0
"""Seconds between the messages after that."""
QUIET = 60.0
"""Seconds after a wait in which the start of another is not logged: requests to a server at its limits wait often."""


class Waiting:
    """Logs one wait, which several threads may share: each message appears once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._next = 0.0
        self._logged = False
        self._quiet = 0.0  # time until which the start of a wait is not logged

    @property
    def next(self) -> float:
        """Time (`time.monotonic`) of the next message."""
        return self._next if self._since is not None else 0.0

    def on_message(self, line: Callable[[float], str]) -> None:
        """Log `line(seconds waited so far)` as a warning if a message is due."""
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since, self._next, self._logged = now, now + SECOND, now >= self._quiet
                if not self._logged:
                    return
            elif now < self._next:
                return
            else:
                self._next, self._logged = now + EVERY, True
            waited = now - self._since
        log.warning("%s", line(waited))

    def over(self) -> bool:
        """End the wait. Returns whether anything was logged."""
        with self._lock:
            logged = self._since is not None and self._logged
            if logged:
                self._quiet = time.monotonic() + QUIET
            self._since = None
            return logged


def seconds(value: float) -> str:
    """Format a duration in seconds."""
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"


def so_far(waited: float) -> str:
    """Format the time waited so far as the prefix of a message; empty at the start of a wait."""
    return "" if waited < 0.95 else f"{seconds(waited)} so far, "

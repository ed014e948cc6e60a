"""Saying that somebody is waited for, while he is: at once, after a few seconds, and then now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Waiting", "seconds", "so_far"]

log = logging.getLogger(__name__)

SECOND = 5.0
"""Seconds of waiting after which it is said for the second time."""
EVERY = 30.0
"""Seconds between two lines after that."""
QUIET = 60.0
"""Seconds after one wait in which the beginning of another is not news: a server at its limits is waited for often."""


class Waiting:
    """What is said of one wait, whoever of several threads says it: each line once. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._next = 0.0
        self._said = False
        self._quiet = 0.0  # time until which no beginning is news

    @property
    def next(self) -> float:
        """Time of `time.monotonic` at which something is to be said again."""
        return self._next if self._since is not None else 0.0

    def on_message(self, line: Callable[[float], str]) -> None:
        """Log `line(seconds waited so far)` as a warning, if it is time to."""
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since, self._next, self._said = now, now + SECOND, now >= self._quiet
                if not self._said:
                    return
            elif now < self._next:
                return
            else:
                self._next, self._said = now + EVERY, True
            waited = now - self._since
        log.warning("%s", line(waited))

    def over(self) -> bool:
        """It has an end; whether anything was said of it."""
        with self._lock:
            said = self._since is not None and self._said
            if said:
                self._quiet = time.monotonic() + QUIET
            self._since = None
            return said


def seconds(value: float) -> str:
    """A time for people."""
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"


def so_far(waited: float) -> str:
    """How long it has lasted, before what is yet to come; nothing at its beginning."""
    return "" if waited < 0.95 else f"{seconds(waited)} so far, "

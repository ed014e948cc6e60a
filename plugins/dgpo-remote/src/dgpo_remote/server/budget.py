"""Memory: one bound over all requests under way, asked for before it is taken, given back however a request ends."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from dgpo_remote.refusal import Refusal

__all__ = ["Budget", "Share", "current_share"]

_SHARE: ContextVar[Share | None] = ContextVar("dgpo_share", default=None)


def current_share() -> Share | None:
    """The share of the request that this task works for."""
    return _SHARE.get()


class Budget:
    """So many bytes for all requests. May be used from any thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        """Bytes that are reserved now."""
        self._lock = threading.Lock()

    def share(self) -> Share:
        """A request's share, empty at first; from now on `current_share` in this task."""
        made = Share(self)
        _SHARE.set(made)
        return made

    def take(self, count: int) -> bool:
        """Reserve bytes if there are as many left."""
        with self._lock:
            if self.used + count > self.size:
                return False
            self.used += count
            return True

    def give_back(self, count: int) -> None:
        """The opposite."""
        with self._lock:
            self.used -= count


class Share:
    """What one request has reserved. It is given back when the last of its holders lets go: the request itself, and
    each of its jobs that the reward is at, which keep their media even when the caller has gone."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._held = 0
        self._holders = 1

    def reserve(self, count: int) -> None:
        """Make sure of so many more bytes before they are used. Raises Refusal: 503 `busy` if there are not as many
        left now, 413 if there never will be."""
        with self._lock:
            if self._holders == 0:
                raise Refusal(503, "busy", "the request has ended", {"Retry-After": "1"})
            if self._held + count > self._budget.size:
                raise Refusal(
                    413,
                    "size",
                    f"the request takes {_mib(self._held + count)} of memory, its copies included; there are "
                    f"{_mib(self._budget.size)} for all requests together (memory_mib); send fewer samples at a time",
                )
            if not self._budget.take(count):
                raise Refusal(
                    503,
                    "busy",
                    f"there is no room now for {_mib(count)}: requests under way take {_mib(self._budget.used)} of "
                    f"{_mib(self._budget.size)} (memory_mib)",
                    {"Retry-After": "1"},
                )
            self._held += count

    def hold(self) -> None:
        """One more holder."""
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        """One less; after the last, everything is given back."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._budget.give_back(self._held)
                self._held = 0


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

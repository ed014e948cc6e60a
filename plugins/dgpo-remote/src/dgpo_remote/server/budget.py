"""A memory budget shared by all requests: reserved before use, and released however a request ends."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from dgpo_remote.refusal import Refusal

__all__ = ["Budget", "Share", "current_share"]

_SHARE: ContextVar[Share | None] = ContextVar("dgpo_share", default=None)


def current_share() -> Share | None:
    """Return the share of the current task's request."""
    return _SHARE.get()


class Budget:
    """A number of bytes for all requests. Thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        """Bytes that are currently reserved."""
        self._lock = threading.Lock()

    def share(self) -> Share:
        """Create an empty share for a request, which becomes this task's `current_share`."""
        made = Share(self)
        _SHARE.set(made)
        return made

    def take(self, count: int) -> bool:
        """Reserve bytes. Returns False if too few are left."""
        with self._lock:
            if self.used + count > self.size:
                return False
            self.used += count
            return True

    def give_back(self, count: int) -> None:
        """Release reserved bytes."""
        with self._lock:
            self.used -= count


class Share:
    """The memory reserved by one request.

    It is released with its last holder: the request itself, and each of its jobs, which hold their media even after the
    client has disconnected.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._held = 0
        self._holders = 1

    def reserve(self, count: int) -> None:
        """Reserve more bytes before they are used.

        Raises Refusal: 503 `busy` if too few are left now, 413 if the whole budget is too small.
        """
        with self._lock:
            if self._holders == 0:
                raise Refusal(503, "busy", "the request has ended", {"Retry-After": "1"})
            if self._held + count > self._budget.size:
                raise Refusal(
                    413,
                    "size",
                    f"the request needs {_mib(self._held + count)} of memory, including copies; the limit for all "
                    f"requests together is {_mib(self._budget.size)} (memory_mib); send fewer samples per request",
                )
            if not self._budget.take(count):
                raise Refusal(
                    503,
                    "busy",
                    f"not enough memory for {_mib(count)} now: other requests use {_mib(self._budget.used)} of "
                    f"{_mib(self._budget.size)} (memory_mib)",
                    {"Retry-After": "1"},
                )
            self._held += count

    def hold(self) -> None:
        """Add a holder."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Remove a holder. The last one releases the memory."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._budget.give_back(self._held)
                self._held = 0


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

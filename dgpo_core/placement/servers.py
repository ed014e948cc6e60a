"""Sharing work out among servers: the least busy one is asked, one that fails is left alone for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dgpo_core.placement.http import shown

__all__ = ["NoServer", "Server", "Servers"]

log = logging.getLogger(__name__)

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds for which a server that failed is left alone: doubled with each failure in a row."""


class NoServer(Exception):
    """None could be had in time."""


@dataclass(eq=False)
class Server:
    """One address.

    name: for messages, without a password; out: it failed, and must show that it is ready before it gets work;
    why: what it did; not_before: time of `time.monotonic` until which it is left alone.
    """

    url: str
    name: str
    in_flight: int = 0
    failures: int = 0
    not_before: float = 0.0
    last_used: float = 0.0
    out: bool = False
    why: str = ""


class Servers:
    """Hands out servers, at most `concurrency` times each. May be used from any thread."""

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Server(url, shown(url)) for url in urls]
        self._concurrency = concurrency
        self._change = threading.Condition()

    def acquire(self, deadline: float) -> Server:
        """The server with the least work under way.

        Waits while all are at work or have asked to be left alone; raises NoServer at the deadline (monotonic). Where
        all have failed it waits until one may be tried again, whatever the deadline: those who ask count failures.
        """
        with self._change:
            while True:
                now = time.monotonic()
                free = [s for s in self.all if s.in_flight < (1 if s.out else self._concurrency)]
                ready = [s for s in free if s.not_before <= now]
                if ready:
                    chosen = min(ready, key=lambda s: (s.in_flight, s.last_used))
                    chosen.in_flight += 1
                    chosen.last_used = now
                    return chosen
                failed = all(s.out for s in self.all)
                if now >= deadline and not failed:
                    raise NoServer("; ".join(f"{s.name}: {s.why or 'busy'}" for s in self.all))
                until = min([now + LONGEST_WAIT if failed else deadline, *(s.not_before for s in free)])
                self._change.wait(until - now)

    def succeeded(self, server: Server) -> None:
        """It has answered."""
        if server.out:
            log.warning("%s is back", server.name)
        self._release(server, out=False, failures=0, not_before=0.0, why="")

    def failed(self, server: Server, why: str) -> None:
        """It has not answered, or nonsense: leave it alone, longer each time."""
        if not server.out:
            log.warning("%s is left alone for now: %s", server.name, why)
        elif server.not_before > time.monotonic():  # another thread has just said so
            return self._release(server)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(server.failures, 20))
        self._release(server, out=True, failures=server.failures + 1, not_before=time.monotonic() + wait, why=why)

    def busy(self, server: Server, seconds: float, why: str) -> None:
        """It has asked to be left alone for so long."""
        self._release(server, not_before=time.monotonic() + seconds, why=why)

    def released(self, server: Server) -> None:
        """It has answered that the request is wrong, which is no fault of its own."""
        self._release(server)

    def _release(self, server: Server, **changes: object) -> None:
        with self._change:
            server.in_flight -= 1
            for name, value in changes.items():
                setattr(server, name, value)
            self._change.notify_all()

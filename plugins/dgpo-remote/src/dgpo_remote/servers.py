"""Load balancing over servers or worker processes: the least busy one gets the request, with backoff after failures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from dgpo_core.system.stopping import check_signals
from dgpo_remote.waiting import Waiting, seconds, so_far

__all__ = ["LOOK", "Closed", "End", "NoServerAvailable", "PendingRequest", "Server", "Servers"]

log = logging.getLogger(__name__)

LONGEST_WAIT = 30.0
"""Longest backoff in seconds. The backoff doubles with each consecutive failure of a server."""
LOOK = 0.5
"""Seconds between two checks for signals while waiting."""


class NoServerAvailable(Exception):
    """No server became available in time."""


class Closed(Exception):
    """The servers were closed."""


class End(Protocol):
    """The connection to one server or worker. Thread-safe."""

    @property
    def name(self) -> str:
        """Name for messages, without a password."""
        ...

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Send a request to a path of a reward service, such as /v1/score, and return the response body.

        body: safetensors, or None. Raises Down, Busy, Refused, RewardRaised and OutOfMemory (see `failures`).
        """
        ...

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The same with JSON bodies."""
        ...

    def close(self) -> None:
        """Close the connection. Pending requests fail."""
        ...


@dataclass(eq=False)
class Server:
    """A server and its state.

    out: whether it failed and must report that it is ready before it gets requests again; why: the last failure;
    not_before: time (`time.monotonic`) before which it gets no requests.
    """

    end: End
    in_flight: int = 0
    failures: int = 0
    not_before: float = 0.0
    last_used: float = 0.0
    out: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.end.name


@dataclass(eq=False)
class PendingRequest:
    """A request that waits for a server or for a response.

    patience: time (`time.monotonic`) until which it waits for servers that are busy; tries: how often it may still
    fail; otherwise: what happens after that, for messages.
    """

    patience: float
    tries: int
    otherwise: str

    def failed(self, patience: float) -> None:
        """Count a failure and restart the wait of `patience` seconds."""
        self.tries -= 1
        self.patience = time.monotonic() + patience


class Servers:
    """Assigns servers to requests, at most `concurrency` requests each, and logs waits. Thread-safe."""

    def __init__(
        self, ends: Sequence[End], concurrency: int, where: str, *, first_wait: float, restarted: bool = False
    ) -> None:
        """first_wait: backoff in seconds after the first failure; restarted: whether failed servers are restarted,
        which changes what is logged."""
        self.all = [Server(end) for end in ends]
        self.where = where
        self.waiting = Waiting()
        self.closed = False
        self._first_wait = first_wait
        self._restarted = restarted
        self._concurrency = concurrency
        self._slow = Waiting()
        self._change = threading.Condition()
        self._pending: list[PendingRequest] = []

    @contextmanager
    def pending(self, patience: float, tries: int, otherwise: str) -> Iterator[PendingRequest]:
        """Register a request that gives up after `tries` failures and waits `patience` seconds for a server."""
        request = PendingRequest(time.monotonic() + patience, tries, otherwise)
        with self._change:
            self._pending.append(request)
        try:
            yield request
        finally:
            with self._change:
                self._pending.remove(request)

    def acquire(self, pending: PendingRequest) -> Server:
        """Return the server with the fewest requests in progress.

        Waits, with log messages, while all servers are busy. Raises NoServerAvailable when the request's patience ends.
        If all servers have failed, waits until one may be retried, regardless of patience: the caller counts failures.
        """
        with self._change:
            while True:
                if self.closed:
                    raise Closed("the reward was closed")
                now = time.monotonic()
                free = [s for s in self.all if s.in_flight < (1 if s.out else self._concurrency)]
                ready = [s for s in free if s.not_before <= now]
                if ready:
                    chosen = min(ready, key=lambda s: (s.in_flight, s.last_used))
                    chosen.in_flight += 1
                    chosen.last_used = now
                    return chosen
                failed = all(s.out for s in self.all)
                if now >= pending.patience and not failed:
                    raise NoServerAvailable("; ".join(f"{s.name}: {s.why or 'busy'}" for s in self.all))
                until = min([now + LONGEST_WAIT if failed else pending.patience, *(s.not_before for s in free)])
                at_work = any(not s.out and s.not_before <= now for s in self.all)  # for other requests
                if not at_work and not self._restarted:
                    self.waiting.on_message(lambda waited: self._waits(pending, waited))
                    until = min(until, max(now, self.waiting.next))
                check_signals()
                self._change.wait(min(LOOK, max(0.01, until - now)))

    def _waits(self, pending: PendingRequest, waited: float) -> str:
        names = "; ".join(f"{s.name} ({s.why or 'busy'})" for s in self.all)
        return f"{self.where}: waiting for {names}; {so_far(waited)}{self._remaining_wait(pending)}"

    def _remaining_wait(self, pending: PendingRequest) -> str:
        """Say how long a request still waits, and what happens then."""
        now = time.monotonic()
        if all(s.out for s in self.all):
            # Only one request at a time retries a failed server, so all pending requests share the retries.
            tries = max(1, -(-pending.tries * max(1, len(self._pending)) // len(self.all)))
            server = min(self.all, key=lambda s: s.not_before)
            waits = sum(self._wait_after(server.failures + i) for i in range(min(tries, 99) - 1))
            left = max(0.0, server.not_before - now) + waits
            more = f"{pending.tries} more failure{'s' * (pending.tries != 1)}"
            return f"about {seconds(left)} more ({more}); then {pending.otherwise}"
        return f"up to {seconds(max(0.0, pending.patience - now))} more; then {pending.otherwise}"

    def _wait_after(self, failures: int) -> float:
        """Return the backoff in seconds after one more failure."""
        return min(LONGEST_WAIT, self._first_wait * 2.0 ** min(failures, 20))

    def slow(self, server: Server, pending: PendingRequest, waited: float, timeout: float) -> None:
        """Log that a response has taken a large part of the timeout."""
        left = seconds(max(0.0, timeout - waited))
        then = f"it is sent again ({pending.tries} more times)" if pending.tries else pending.otherwise
        self._slow.on_message(
            lambda _: (
                f"{self.where}: {server.name} has not answered for {seconds(waited)}; up to {left} more, then {then}"
            )
        )

    def succeeded(self, server: Server) -> None:
        """Record a response."""
        self._slow.over()
        logged = self.waiting.over()
        if (server.out or logged) and not self._restarted:
            log.warning("%s: %s is available again", self.where, server.name)
        self._release(server, out=False, failures=0, not_before=0.0, why="")

    def failed(self, server: Server, pending: PendingRequest, why: str) -> None:
        """Record a missing or invalid response, and back off."""
        first = not server.out
        if not first and server.not_before > time.monotonic():  # another thread has just recorded it
            return self._release(server)
        wait = self._wait_after(server.failures)
        self._release(server, out=True, failures=server.failures + 1, not_before=time.monotonic() + wait, why=why)
        if self._restarted:
            if pending.tries > 0:
                log.warning("%s: %s %s; restarting it", self.where, server.name, why.splitlines()[0])
        elif first:
            log.warning("%s: %s failed and is retried later: %s", self.where, server.name, why)

    def busy(self, server: Server, seconds: float, why: str) -> None:
        """Record that the server asked the client to retry after `seconds`."""
        self._release(server, not_before=time.monotonic() + seconds, why=why)

    def released(self, server: Server) -> None:
        """Record that the server rejected the request, which is not a failure of the server."""
        self._release(server)

    def close(self) -> None:
        """Close all servers and wake up all waiting threads."""
        with self._change:
            self.closed = True
            self._change.notify_all()
        for server in self.all:
            server.end.close()

    def _release(self, server: Server, **changes: object) -> None:
        with self._change:
            server.in_flight -= 1
            for name, value in changes.items():
                setattr(server, name, value)
            self._change.notify_all()

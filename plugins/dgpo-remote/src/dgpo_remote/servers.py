"""Sharing work out among servers, or worker processes: the least busy one is asked, one that fails is left alone for a
while."""

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

__all__ = ["LOOK", "Closed", "End", "Errand", "NoServer", "Server", "Servers"]

log = logging.getLogger(__name__)

LONGEST_WAIT = 30.0
"""Seconds for which a server that failed is left alone at most: the first ones doubled with each failure in a row."""
LOOK = 0.5
"""Seconds of waiting after which it is looked whether a signal has come."""


class NoServer(Exception):
    """None could be had in time."""


class Closed(Exception):
    """Nobody wants an answer any more."""


class End(Protocol):
    """How one server is talked to. May be used from any thread."""

    @property
    def name(self) -> str:
        """For messages, without a password."""
        ...

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """The answer to a path of a reward service, such as /v1/score, with a body in safetensors or none. Raises Down,
        Busy, Refused, RewardRaised and OutOfMemory (`failures`)."""
        ...

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The same where both are JSON."""
        ...

    def close(self) -> None:
        """End it; whoever waits for an answer of it gets none."""
        ...


@dataclass(eq=False)
class Server:
    """One of those that are asked, and how it does.

    out: it failed, and must show that it is ready before it gets work;
    why: what it did; not_before: time of `time.monotonic` until which it is left alone.
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
        """For messages."""
        return self.end.name


@dataclass(eq=False)
class Errand:
    """One request on its way to whichever server answers it.

    patience: time of `time.monotonic` until which it waits for servers that are at work or ask to wait; tries: how
    often it may still fail; otherwise: what happens when it is given up.
    """

    patience: float
    tries: int
    otherwise: str

    def failed(self, patience: float) -> None:
        """It has failed once more, and waits anew for so many seconds."""
        self.tries -= 1
        self.patience = time.monotonic() + patience


class Servers:
    """Hands out servers, at most `concurrency` times each, and says when none can be had. May be used from any
    thread."""

    def __init__(
        self, ends: Sequence[End], concurrency: int, where: str, *, first_wait: float, restarted: bool = False
    ) -> None:
        """first_wait: seconds for which one is left alone after its first failure; restarted: whether those that fail
        are started again, which is said instead of that they are waited for."""
        self.all = [Server(end) for end in ends]
        self.where = where
        self.waiting = Waiting()
        self.closed = False
        self._first_wait = first_wait
        self._restarted = restarted
        self._concurrency = concurrency
        self._slow = Waiting()
        self._change = threading.Condition()
        self._errands: list[Errand] = []

    @contextmanager
    def errand(self, patience: float, tries: int, otherwise: str) -> Iterator[Errand]:
        """A request that may fail `tries` times, the last of which gives it up, and waits for so many seconds."""
        made = Errand(time.monotonic() + patience, tries, otherwise)
        with self._change:
            self._errands.append(made)
        try:
            yield made
        finally:
            with self._change:
                self._errands.remove(made)

    def acquire(self, errand: Errand) -> Server:
        """The server with the least work under way.

        Waits while all are at work or have asked to be left alone, and says so; raises NoServer when the errand's
        patience is at its end. Where all have failed it waits until one may be tried again, whatever the patience:
        those who ask count failures.
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
                if now >= errand.patience and not failed:
                    raise NoServer("; ".join(f"{s.name}: {s.why or 'busy'}" for s in self.all))
                until = min([now + LONGEST_WAIT if failed else errand.patience, *(s.not_before for s in free)])
                at_work = any(not s.out and s.not_before <= now for s in self.all)  # for somebody else
                if not at_work and not self._restarted:
                    self.waiting.on_message(lambda waited: self._waits(errand, waited))
                    until = min(until, max(now, self.waiting.next))
                check_signals()
                self._change.wait(min(LOOK, max(0.01, until - now)))

    def _waits(self, errand: Errand, waited: float) -> str:
        names = "; ".join(f"{s.name} ({s.why or 'busy'})" for s in self.all)
        return f"{self.where}: waiting for {names}; {so_far(waited)}{self._outlook(errand)}"

    def _outlook(self, errand: Errand) -> str:
        """How long an errand still waits, and what happens then."""
        now = time.monotonic()
        if all(s.out for s in self.all):
            # Servers that failed are tried by one errand at a time, so that all of them share the tries.
            tries = max(1, -(-errand.tries * max(1, len(self._errands)) // len(self.all)))
            server = min(self.all, key=lambda s: s.not_before)
            waits = sum(self._wait_after(server.failures + i) for i in range(min(tries, 99) - 1))
            left = max(0.0, server.not_before - now) + waits
            more = f"{errand.tries} more failure{'s' * (errand.tries != 1)}"
            return f"about {seconds(left)} more ({more}); then {errand.otherwise}"
        return f"up to {seconds(max(0.0, errand.patience - now))} more; then {errand.otherwise}"

    def _wait_after(self, failures: int) -> float:
        """Seconds for which one is left alone that has failed once more."""
        return min(LONGEST_WAIT, self._first_wait * 2.0 ** min(failures, 20))

    def slow(self, server: Server, errand: Errand, waited: float, timeout: float) -> None:
        """It has been at work on a request for a large part of the time that it has."""
        left = seconds(max(0.0, timeout - waited))
        then = f"it is sent again ({errand.tries} more times)" if errand.tries else errand.otherwise
        self._slow.on_message(
            lambda _: (
                f"{self.where}: {server.name} has not answered for {seconds(waited)}; up to {left} more, then {then}"
            )
        )

    def succeeded(self, server: Server) -> None:
        """It has answered."""
        self._slow.over()
        reported = self.waiting.over()
        if (server.out or reported) and not self._restarted:
            log.warning("%s: %s is back", self.where, server.name)
        self._release(server, out=False, failures=0, not_before=0.0, why="")

    def failed(self, server: Server, errand: Errand, why: str) -> None:
        """It has not answered, or nonsense: leave it alone, longer each time."""
        news = not server.out
        if not news and server.not_before > time.monotonic():  # another thread has just said so
            return self._release(server)
        wait = self._wait_after(server.failures)
        self._release(server, out=True, failures=server.failures + 1, not_before=time.monotonic() + wait, why=why)
        if self._restarted:
            if errand.tries > 0:
                log.warning("%s: %s %s; it is started again", self.where, server.name, why.splitlines()[0])
        elif news:
            log.warning("%s: %s is left alone for now: %s", self.where, server.name, why)

    def busy(self, server: Server, seconds: float, why: str) -> None:
        """It has asked to be left alone for so long."""
        self._release(server, not_before=time.monotonic() + seconds, why=why)

    def released(self, server: Server) -> None:
        """It has answered that the request is wrong, which is no fault of its own."""
        self._release(server)

    def close(self) -> None:
        """End them all; whoever waits for one does so no longer."""
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

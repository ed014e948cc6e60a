"""All connections of a service: limits on their number, fair scheduling and timeouts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import Enum
from typing import Protocol

from dgpo_remote.server.counters import Counters
from dgpo_schemas.serve import ConnectionsSection

__all__ = ["Clock", "Phase", "Pool"]

TURN = 0.002
"""Seconds that all connections together may spend on body chunks per iteration of the event loop."""
UNREAD = 256 * 2**20
"""Most bytes of responses that clients have not read, over all connections."""


class Phase(Enum):
    """What a connection waits for."""

    HEAD = "head"
    """A complete request head: from the start of the connection, and from the first byte after a response."""
    BODY = "body"
    """The rest of the request's body."""
    WORK = "work"
    """The service's response to a complete request."""
    IDLE = "idle"
    """Another request."""
    LINGER = "linger"
    """The client's close. Data from it is dropped."""
    CLOSED = "closed"


class Connected(Protocol):
    """The interface of a connection that the pool uses. since: when `phase` began."""

    phase: Phase
    since: float

    def unread_bytes(self) -> int:
        """Return the bytes of responses that the client has not read."""

    def sweep(self, now: float) -> None:
        """Close the connection if a timeout has passed."""

    def go_on(self) -> None:
        """Resume reading chunks."""

    def take_next(self) -> None:
        """Process a pipelined request."""

    def abort(self) -> None:
        """Close the connection immediately."""


WITHOUT_REQUEST = (Phase.HEAD, Phase.IDLE, Phase.LINGER)
Clock = time.monotonic


class Pool:
    """All connections of a service: admits new ones, schedules their work and enforces timeouts."""

    def __init__(self, section: ConnectionsSection, most: int, counters: Counters) -> None:
        self.section = section
        self.most = most
        self.counters = counters
        self.connections: set[Connected] = set()
        self._queue: deque[Connected] = deque()
        self._early: deque[Connected] = deque()
        self._turn_ends = 0.0
        self._in_turn = False

    def has_time(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether there is time for another chunk in this iteration of the event loop."""
        if not self._in_turn:
            self._in_turn, self._turn_ends = True, Clock() + TURN
            loop.call_soon(self._next_turn, loop)
        return Clock() < self._turn_ends

    def wait_for_turn(self, connection: Connected) -> None:
        """Queue a connection to resume reading chunks in a later iteration."""
        self._queue.append(connection)

    def wait_for_answer(self, connection: Connected, loop: asyncio.AbstractEventLoop) -> None:
        """Queue a connection to process a pipelined request.

        One such request is processed per iteration, so that a client that pipelines hundreds does not delay others.
        """
        self._early.append(connection)
        if len(self._early) == 1:
            loop.call_soon(self._take_early, loop)

    def _take_early(self, loop: asyncio.AbstractEventLoop) -> None:
        self._early[0].take_next()
        self._early.popleft()
        if self._early:
            loop.call_soon(self._take_early, loop)

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._in_turn = False
        while self._queue and self.has_time(loop):
            self._queue.popleft().go_on()

    def admit(self, connection: Connected) -> bool:
        """Admit a connection.

        At the limit, the connection that has waited longest without a complete request is closed. Returns False if
        there is none.
        """
        full = len(self.connections) >= self.most
        self.connections.add(connection)
        if not full:
            return True
        waiting = [one for one in self.connections if one.phase in WITHOUT_REQUEST and one is not connection]
        if not waiting:
            return False
        self.counters.refuse("connections")
        min(waiting, key=lambda one: one.since).abort()
        return True

    def sweep(self) -> None:
        """Enforce timeouts and the limit on unread responses. Called several times per second."""
        now = Clock()
        for connection in list(self.connections):
            connection.sweep(now)
        unread_bytes = {connection: connection.unread_bytes() for connection in self.connections}
        for connection in sorted(unread_bytes, key=lambda one: -unread_bytes[one]):
            if sum(unread_bytes.values()) <= UNREAD:
                break
            del unread_bytes[connection]
            self.counters.refuse("answer")
            connection.abort()

    def close(self) -> None:
        """Close connections without a complete request. Unread responses can still be read."""
        for connection in list(self.connections):
            if connection.phase in WITHOUT_REQUEST and not connection.unread_bytes():
                connection.abort()

    def abort(self) -> None:
        """Close all connections and cancel their requests."""
        for connection in list(self.connections):
            connection.abort()

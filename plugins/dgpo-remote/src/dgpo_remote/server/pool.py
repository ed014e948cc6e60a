"""All connections of a service together: how many there are, whose turn it is, and who has waited too long."""

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
"""Seconds that all connections together may spend on chunks of bodies before the event loop goes on."""
UNREAD = 256 * 2**20
"""Bytes of answers that callers have not taken, over all connections."""


class Phase(Enum):
    """What a connection waits for."""

    HEAD = "head"
    """A whole head: from the beginning, and from the first byte after an answer."""
    BODY = "body"
    """The rest of a request that is under way."""
    WORK = "work"
    """Our answer: the request is whole."""
    IDLE = "idle"
    """Another request."""
    LINGER = "linger"
    """The caller's end; what it sends is dropped."""
    CLOSED = "closed"


class Connected(Protocol):
    """A connection, as the pool knows it. since: when `phase` began."""

    phase: Phase
    since: float

    def unread_bytes(self) -> int:
        """Bytes of answers that the caller has not taken."""

    def sweep(self, now: float) -> None:
        """End it if it has waited too long."""

    def go_on(self) -> None:
        """Read on, now that it is its turn."""

    def take_next(self) -> None:
        """Take up the request that came before its turn."""

    def abort(self) -> None:
        """End it at once."""


WITHOUT_REQUEST = (Phase.HEAD, Phase.IDLE, Phase.LINGER)
Clock = time.monotonic


class Pool:
    """All connections of a service: makes room for new ones and ends those whose time is over."""

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
        """Whether there is time in this round of the loop for one more chunk."""
        if not self._in_turn:
            self._in_turn, self._turn_ends = True, Clock() + TURN
            loop.call_soon(self._next_turn, loop)
        return Clock() < self._turn_ends

    def wait_for_turn(self, connection: Connected) -> None:
        """Let a connection go on reading chunks in a later round, after those that wait already."""
        self._queue.append(connection)

    def wait_for_answer(self, connection: Connected, loop: asyncio.AbstractEventLoop) -> None:
        """Let a connection take up a request that came before its turn: one in a round of the loop, of all connections,
        for whoever sends hundreds at once must not be before those who ask once."""
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
        """Take one in. Where there are as many as there may be, the one that has waited longest without a whole request
        makes room; False if there is none."""
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
        """End what has waited too long. To be called several times a second."""
        now = Clock()
        for connection in list(self.connections):
            connection.sweep(now)
        unread = {connection: connection.unread_bytes() for connection in self.connections}
        for connection in sorted(unread, key=lambda one: -unread[one]):
            if sum(unread.values()) <= UNREAD:
                break
            del unread[connection]
            self.counters.refuse("answer")
            connection.abort()

    def close(self) -> None:
        """Close those that wait for nothing of ours; answers that are on their way may still be taken."""
        for connection in list(self.connections):
            if connection.phase in WITHOUT_REQUEST and not connection.unread_bytes():
                connection.abort()

    def abort(self) -> None:
        """End all, and what is done for them."""
        for connection in list(self.connections):
            connection.abort()

"""Which server gets a request: the one with the fewest in flight, with pauses and back-off. Used in one event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Endpoint", "Endpoints", "backoff"]

log = logging.getLogger(__name__)

FIRST_WAIT = 0.5
"""Back-off in seconds after the first failure; it doubles with each further one."""
LONGEST_WAIT = 30.0


def backoff(failures: int, jitter: random.Random) -> float:
    """Return the seconds to wait after so many failures: doubling, times a random factor from 0.5 to 1.5."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 20)) * (0.5 + jitter.random())


@dataclass(eq=False)
class Endpoint:
    """A server and its state. down: whether it was unreachable at last; not_before: when it may be asked again
    (`time.monotonic`); pauses: consecutive answers that asked for a pause; why: the last failure."""

    url: str
    in_flight: int = 0
    down: bool = False
    failures: int = 0
    pauses: int = 0
    not_before: float = 0.0
    why: str = ""


class Endpoints:
    """The servers of a judge. `most` requests are in flight at each."""

    def __init__(self, urls: Sequence[str], most: int) -> None:
        self.all = [Endpoint(url) for url in urls]
        self.in_flight_high = 0
        """Highest number of requests in flight at all servers together."""
        self._most = most
        self._jitter = random.Random()  # times only: no result depends on it
        self._changed = asyncio.Condition()

    async def acquire(self, deadline: float) -> Endpoint | None:
        """Wait for a server with room; None when the deadline (`time.monotonic`) has passed.

        A server that was unreachable gets one request at a time until it answers.
        """
        async with self._changed:
            while True:
                now = time.monotonic()
                free = [e for e in self.all if e.in_flight < (1 if e.down else self._most)]
                ready = [e for e in free if e.not_before <= now]
                if ready and now < deadline:
                    chosen = min(ready, key=lambda e: e.in_flight)
                    chosen.in_flight += 1
                    self.in_flight_high = max(self.in_flight_high, sum(e.in_flight for e in self.all))
                    return chosen
                if now >= deadline:
                    return None
                until = min([deadline, *(e.not_before for e in free)])
                try:
                    await asyncio.wait_for(self._changed.wait(), max(0.001, until - now))
                except TimeoutError:
                    continue

    async def succeeded(self, endpoint: Endpoint) -> None:
        """Record an answer."""
        if endpoint.down:
            log.warning("judge: %s is available again", endpoint.url)
        endpoint.down, endpoint.failures, endpoint.pauses, endpoint.why = False, 0, 0, ""
        await self.release(endpoint)

    async def unreachable(self, endpoint: Endpoint, why: str) -> None:
        """Record that there was no connection: wait longer and longer for the server."""
        if not endpoint.down:
            log.warning("judge: %s cannot be reached and is tried again: %s", endpoint.url, why)
        if endpoint.not_before <= time.monotonic():  # not already recorded by another request of the same moment
            endpoint.failures += 1
            endpoint.not_before = time.monotonic() + backoff(endpoint.failures, self._jitter)
        endpoint.down, endpoint.why = True, why
        await self.release(endpoint)

    async def paused(self, endpoint: Endpoint, seconds: float | None, why: str) -> None:
        """Record that the server asked for a pause of so many seconds, or did not say how many.

        A pause too short to help (`Retry-After: 0`, or a date that has passed) is lengthened like one without seconds:
        else an overloaded server would be asked without a break.
        """
        if endpoint.not_before <= time.monotonic():
            endpoint.pauses += 1
        wait = seconds or 0.0
        if wait < FIRST_WAIT:
            wait = max(wait, backoff(endpoint.pauses, self._jitter))
        endpoint.not_before, endpoint.why = max(endpoint.not_before, time.monotonic() + wait), why
        await self.release(endpoint)

    async def release(self, endpoint: Endpoint) -> None:
        """Record the end of a request."""
        async with self._changed:
            endpoint.in_flight -= 1
            self._changed.notify_all()

    async def rest(self, failures: int, deadline: float) -> None:
        """Wait before a request is sent again after so many failures of its own."""
        await asyncio.sleep(max(0.0, min(backoff(failures, self._jitter), deadline - time.monotonic())))

    def why(self) -> str:
        """Return what is known of servers that did not answer."""
        return "; ".join(f"{e.url}: {e.why or 'busy'}" for e in self.all)

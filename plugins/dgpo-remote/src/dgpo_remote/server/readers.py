"""Readers: processes that parse request bodies and decode their images, and that can be killed.

The service itself parses and decodes nothing that clients send, except tensors, so no body can block its interpreter or
event loop. A request uses one reader at a time and yields it after a turn if other requests wait.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections import deque
from collections.abc import Callable

from dgpo_core.media.pixels import MAX_PIXELS
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.frames import BODY_COPIES, OWN_MEMORY, PIXEL_BYTES
from dgpo_remote.server.reader_process import ReaderProcess
from dgpo_remote.server.reading import BodyKind, Job, Reading, Unlucky
from dgpo_schemas.service import ServiceLimits

__all__ = ["Readers", "Reading"]

log = logging.getLogger(__name__)

CLOSING = 1.0
"""Seconds to wait for killed processes to exit."""
COURTESY, MOST_TURNS = 2, 10
"""How many later requests go first per turn that a request has had, and the number of turns that count."""
HEAVY = 32 * 2**20
"""Size of a body in bytes above which its reader is replaced afterwards: fragmented memory is not returned."""
STARTING = 60.0
"""Start timeout of a reader in seconds."""


class Readers:
    """A pool of `count` reader processes, restarted whenever one dies. For one event loop; `close` kills them."""

    def __init__(self, count: int, limits: ServiceLimits) -> None:
        self._memory = memory(limits)
        self._idle: deque[ReaderProcess | None] = deque([None] * count)
        self._waiting: list[tuple[int, asyncio.Future[ReaderProcess | None]]] = []
        self._requests = 0
        self._all: set[ReaderProcess] = set()
        self._closed = False

    def start(self) -> None:
        """Start the processes, so that the first request does not wait for one."""
        self._idle = deque(one or self._started() for one in self._idle)

    async def read(
        self,
        kind: BodyKind,
        content_type: str,
        body: bytes,
        *,
        limits: ServiceLimits,
        reserve: Callable[[int], None] = lambda _: None,
    ) -> Reading:
        """Read the images of a body and their prompts. Cancellation kills the reader in use.

        content_type: the header, with a form's boundary; reserve: called with the bytes of memory that the images need
        before they are decoded; raises Refusal if there is too little.

        Raises Refusal for a malformed body, for too many samples or pixels, and if none of the images can be read, with
        the reason of the first. If only some cannot be read, `Reading.lost` has the reasons.
        """
        job = Job(kind, content_type, body, limits, reserve)
        while not job.done:
            reader = await self._take(job.turns)
            try:
                if reader is None or reader.ended():
                    reader = self._start()
                await self._turn(job, reader)
            except BaseException:  # a Refusal leaves the reader usable
                if reader is not None and not job.at_rest:
                    reader.kill()
                raise
            finally:
                self._give(reader)
        return job.reading()

    async def _turn(self, job: Job, reader: ReaderProcess) -> None:
        job.at_rest = False
        try:
            await self._greet(reader)
            await job.turn(reader, lambda: bool(self._waiting))
            if len(job.body) > HEAVY:
                reader.kill()
        except Unlucky as error:
            reader.kill()
            log.warning("a reader was lost: %s", error)

    async def _greet(self, reader: ReaderProcess) -> None:
        try:
            async with asyncio.timeout(STARTING):
                await reader.greet()
        except (EOFError, TimeoutError):
            output = reader.last_words()
            reader.kill()
            log.error("a reader process did not start: %s", output or "no output")
            raise _no_reader() from None

    # -- turns ------------------------------------------------------------------------------------------------------

    async def _take(self, turns: int) -> ReaderProcess | None:
        """Wait for a slot of the pool, and return its process if there is one.

        Requests are served in order, but one that has had turns lets a bounded number of later ones go first.
        """
        if self._closed:
            raise _ending()
        if self._idle and not self._waiting:
            return self._idle.popleft()
        turn: asyncio.Future[ReaderProcess | None] = asyncio.get_running_loop().create_future()
        self._requests += 1
        place = self._requests + COURTESY * min(turns, MOST_TURNS)
        bisect.insort(self._waiting, (place, turn), key=lambda waiting: waiting[0])
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give(turn.result())  # it was assigned at the moment of cancellation
            raise
        finally:
            self._waiting = [waiting for waiting in self._waiting if waiting[1] is not turn]

    def _give(self, reader: ReaderProcess | None) -> None:
        """Return a slot to the pool, for the first waiting request. A process that died is restarted."""
        if reader is None or reader.killed or reader.ended():
            if reader is not None:
                reader.kill()
            reader = self._started()
        while self._waiting:
            _, turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(reader)
                return
        self._idle.append(reader)

    def _started(self) -> ReaderProcess | None:
        """Start a process. Returns None if that fails; it is tried again when the slot is used."""
        self._all = {one for one in self._all if not (one.killed and one.ended())}
        if self._closed:
            return None
        try:
            process = ReaderProcess(self._memory)
        except OSError as error:
            log.error("a reader process cannot be started: %s", error)
            return None
        self._all.add(process)
        return process

    def _start(self) -> ReaderProcess:
        process = self._started()
        if process is None:
            raise _ending() if self._closed else _no_reader()
        return process

    def processes(self) -> list[int]:
        """Return the process IDs of the running processes."""
        return [one.pid for one in self._all if not one.killed and not one.ended()]

    def close(self) -> None:
        """Kill all processes. Idempotent; may be called from any thread after the event loop has ended."""
        self._closed = True
        for one in self._all:
            one.kill()
        until = time.monotonic() + CLOSING
        while time.monotonic() < until and [one for one in self._all if not one.ended()]:
            time.sleep(0.005)
        self._all.clear()


def memory(limits: ServiceLimits) -> int:
    """Return a reader's memory limit in bytes: itself, copies of a body, and the decoding of one file."""
    pixels = min(limits.max_megapixels * 1_000_000, MAX_PIXELS)
    return OWN_MEMORY + BODY_COPIES * limits.max_body_mib * 2**20 + PIXEL_BYTES * pixels


def _ending() -> Refusal:
    return Refusal(503, "busy", "the service is draining", {"Retry-After": "1"})


def _no_reader() -> Refusal:
    return Refusal(503, "busy", "no reader process is available; see the service's log", {"Retry-After": "5"})

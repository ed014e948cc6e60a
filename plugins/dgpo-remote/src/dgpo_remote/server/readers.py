"""Readers: processes that take bodies of requests apart and decode their images, and that can be killed.

Nothing that a stranger sends is parsed or decoded in the service itself, except tensors: no body holds its interpreter,
its event loop or a lock. A request has one reader at a time and gives it back after a turn if others wait.
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
"""Seconds within which killed processes are expected to be gone."""
COURTESY, MOST_TURNS = 2, 10
"""How many later requests go first for each turn that a request has had, and the turns up to which that grows."""
HEAVY = 32 * 2**20
"""Bytes of a body after which a reader is replaced: memory that is full of small holes is not given back."""
STARTING = 60.0
"""Seconds that an interpreter may take to start."""


class Readers:
    """`count` processes, started by `start`, and again whenever one dies. For one event loop; `close` ends them."""

    def __init__(self, count: int, limits: ServiceLimits) -> None:
        self._memory = memory(limits)
        self._idle: deque[ReaderProcess | None] = deque([None] * count)
        self._waiting: list[tuple[int, asyncio.Future[ReaderProcess | None]]] = []
        self._asked = 0
        self._all: set[ReaderProcess] = set()
        self._closed = False

    def start(self) -> None:
        """Start them, so that the first request need not wait for one."""
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
        """The images of a body and their prompts. Cancelled, it kills the reader that is at work.

        content_type: the header, with a form's boundary; reserve: told how many bytes of memory the images will take,
        before any is unpacked; raises Refusal if there is no room. Raises Refusal for a body that cannot be taken
        apart, more samples or pixels than a request may hold, and, with the reason of the first one, where none of its
        images can be read. One image among others that cannot be is in `Reading.lost`.
        """
        job = Job(kind, content_type, body, limits, reserve)
        while not job.done:
            reader = await self._take(job.turns)
            try:
                if reader is None or reader.ended():
                    reader = self._start()
                await self._turn(job, reader)
            except BaseException:  # a Refusal ends a turn as it should
                if reader is not None and not job.at_rest:
                    reader.kill()
                raise
            finally:
                self._give(reader)
        return job.reading()

    async def _turn(self, job: Job, reader: ReaderProcess) -> None:
        job.at_rest = False
        try:
            await self._greeted(reader)
            await job.turn(reader, lambda: bool(self._waiting))
            if len(job.body) > HEAVY:
                reader.kill()
        except Unlucky as error:
            reader.kill()
            log.warning("a reader was lost: %s", error)

    async def _greeted(self, reader: ReaderProcess) -> None:
        try:
            async with asyncio.timeout(STARTING):
                await reader.greet()
        except (EOFError, TimeoutError):
            said = reader.last_words()
            reader.kill()
            log.error("a process that reads images does not start: %s", said or "it says nothing")
            raise _no_reader() from None

    # -- turns ------------------------------------------------------------------------------------------------------

    async def _take(self, turns: int) -> ReaderProcess | None:
        """A place among the readers, with its process if there is one. In the order of asking, but whoever has had
        turns lets as many others go first, up to a number, so that nobody waits for ever."""
        if self._closed:
            raise _ending()
        if self._idle and not self._waiting:
            return self._idle.popleft()
        turn: asyncio.Future[ReaderProcess | None] = asyncio.get_running_loop().create_future()
        self._asked += 1
        place = self._asked + COURTESY * min(turns, MOST_TURNS)
        bisect.insort(self._waiting, (place, turn), key=lambda waiting: waiting[0])
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give(turn.result())  # it was given at the moment at which nobody wanted it any more
            raise
        finally:
            self._waiting = [waiting for waiting in self._waiting if waiting[1] is not turn]

    def _give(self, reader: ReaderProcess | None) -> None:
        """Back, to whoever has waited longest; one that died is started again."""
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
        """A new process; None if there can be none now: it is tried again when it is needed."""
        self._all = {one for one in self._all if not (one.killed and one.ended())}
        if self._closed:
            return None
        try:
            made = ReaderProcess(self._memory)
        except OSError as error:
            log.error("a process that reads images cannot be started: %s", error)
            return None
        self._all.add(made)
        return made

    def _start(self) -> ReaderProcess:
        made = self._started()
        if made is None:
            raise _ending() if self._closed else _no_reader()
        return made

    def processes(self) -> list[int]:
        """Numbers of the processes that live."""
        return [one.pid for one in self._all if not one.killed and not one.ended()]

    def close(self) -> None:
        """Kill all of them. May be called from any thread once the loop has ended, and twice."""
        self._closed = True
        for one in self._all:
            one.kill()
        until = time.monotonic() + CLOSING
        while time.monotonic() < until and [one for one in self._all if not one.ended()]:
            time.sleep(0.005)
        self._all.clear()


def memory(limits: ServiceLimits) -> int:
    """Bytes that a reader may take at most: itself, a body in several forms, and one file's pixels in several steps."""
    pixels = min(limits.max_megapixels * 1_000_000, MAX_PIXELS)
    return OWN_MEMORY + BODY_COPIES * limits.max_body_mib * 2**20 + PIXEL_BYTES * pixels


def _ending() -> Refusal:
    return Refusal(503, "busy", "the service is draining", {"Retry-After": "1"})


def _no_reader() -> Refusal:
    return Refusal(503, "busy", "there is no process to read images with; the service's log says why",
                   {"Retry-After": "5"})  # fmt: skip

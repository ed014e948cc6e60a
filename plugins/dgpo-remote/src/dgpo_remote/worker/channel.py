"""Messages over a socket between a run and its worker process: the carrier that stands where a service has HTTP.

A frame is a magic word, the length and the bytes. That of a question has a number and its path besides, and that of its
answer the same number and a status, so that an answer which comes late, or twice, is never taken for another
question's. The greeting has neither: versions of this protocol that do not understand each other can still tell so.
Nothing is ever unpickled: the bytes are those that a service would be sent and would answer (`messages`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable

__all__ = ["LONGEST", "Channel"]

HEAD = struct.Struct("<4sQ")
MAGIC = b"DGPO"
NUMBERED = b"DGPN"
NUMBER = struct.Struct("<Q16s")
"""What follows the head of a frame with a number: that, and a path or a status."""
LONGEST = 8 * 2**30
"""Most bytes of a frame: a longer one is not sent, and not believed. The memory is taken before it is read."""
SLICE = 0.5
"""Seconds between two looks at whether the other side still lives."""


class Channel:
    """One end of a socket pair. Raises EOFError when the other end is gone and TimeoutError at the deadline.

    Deadlines are times of `time.monotonic`; None waits as long as `alive` says that somebody may answer.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, blob: bytes, *, number: int = 0, about: str = "", deadline: float | None = None) -> None:
        """Send a frame, with the number of a question (from 1) and its path or the status of its answer, or without
        (0)."""
        head = HEAD.pack(NUMBERED if number else MAGIC, len(blob))
        head += NUMBER.pack(number, about.encode()) if number else b""
        remaining = _remaining(deadline)
        try:
            self._socket.settimeout(remaining)
            self._socket.sendall(head)
            self._socket.sendall(blob)
        except TimeoutError:
            raise
        except OSError as error:  # a broken pipe, a reset, or an end that was closed from another thread
            raise EOFError(str(error)) from error

    def receive(
        self, *, deadline: float | None = None, alive: Callable[[], bool] = lambda: True
    ) -> tuple[int, str, bytes]:
        """Wait for a frame: its number, 0 if it has none, what it is about, and its bytes. `alive` is asked now and
        then: a child of the other side may keep its end open."""
        magic, length = HEAD.unpack(self._read(HEAD.size, deadline, alive))
        if magic not in (MAGIC, NUMBERED) or length > LONGEST:
            raise EOFError("the other side does not speak this protocol")
        number, about = 0, b""
        if magic == NUMBERED:
            number, about = NUMBER.unpack(self._read(NUMBER.size, deadline, alive))
        return number, about.rstrip(b"\0").decode("latin-1"), self._read(length, deadline, alive)

    def _read(self, length: int, deadline: float | None, alive: Callable[[], bool]) -> bytes:
        try:
            data = bytearray(length)
        except MemoryError:
            raise EOFError(f"the other side announces {length} bytes, for which there is no memory") from None
        view, got = memoryview(data), 0
        while got < length:
            self._wait(deadline, alive)
            try:
                count = self._socket.recv_into(view[got:])
            except OSError as error:
                raise EOFError(str(error)) from error
            if count == 0:
                raise EOFError("the other side has closed its end")
            got += count
        view.release()
        return bytes(data)

    def _wait(self, deadline: float | None, alive: Callable[[], bool]) -> None:
        """Until there is something to read."""
        self._socket.settimeout(None)
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
        except (ValueError, OSError) as error:
            raise EOFError("this end was closed") from error
        while True:
            remaining = _remaining(deadline)
            lived = alive()
            if poll.poll(1000 * (SLICE if remaining is None else min(remaining, SLICE))):
                return
            if not lived:
                raise EOFError("the other side has ended")

    def close(self) -> None:
        """Let go of the socket, waking up a thread that waits at it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left

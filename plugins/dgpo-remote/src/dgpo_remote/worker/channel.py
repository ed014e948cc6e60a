"""Messages over a socket between a run and its worker process: the transport that replaces HTTP.

A frame is a magic word, the payload's length and the payload. A request frame also has a number and a path, and its
response the same number and a status, so that a late or duplicate response is never taken for another request's. The
greeting has neither, so that incompatible protocol versions can still detect each other. Pickle is never used: the
payloads are those of a service (`messages`).
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
"""Follows the head of a numbered frame: the number, and a path or a status."""
LONGEST = 8 * 2**30
"""Largest payload in bytes that is sent or accepted. Its memory is allocated before it is read."""
SLICE = 0.5
"""Seconds between two checks of whether the other process is alive."""


class Channel:
    """One end of a socket pair. Raises EOFError when the other end is gone and TimeoutError at the deadline.

    Deadlines are times of `time.monotonic`; None waits as long as `alive` returns True.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, blob: bytes, *, number: int = 0, about: str = "", deadline: float | None = None) -> None:
        """Send a frame.

        number: that of the request, from 1, or 0 for a frame without number; about: a request's path or a response's
        status.
        """
        head = HEAD.pack(NUMBERED if number else MAGIC, len(blob))
        head += NUMBER.pack(number, about.encode()) if number else b""
        remaining = _remaining(deadline)
        try:
            self._socket.settimeout(remaining)
            self._socket.sendall(head)
            self._socket.sendall(blob)
        except TimeoutError:
            raise
        except OSError as error:  # a broken pipe, a reset, or a socket that another thread closed
            raise EOFError(str(error)) from error

    def receive(
        self, *, deadline: float | None = None, alive: Callable[[], bool] = lambda: True
    ) -> tuple[int, str, bytes]:
        """Wait for a frame. Returns its number (0 if it has none), its path or status, and its payload.

        `alive` is polled because a child of the other process may keep the socket open.
        """
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
            raise EOFError(f"not enough memory for a message of {length} bytes") from None
        view, got = memoryview(data), 0
        while got < length:
            self._wait(deadline, alive)
            try:
                count = self._socket.recv_into(view[got:])
            except OSError as error:
                raise EOFError(str(error)) from error
            if count == 0:
                raise EOFError("the other side closed the connection")
            got += count
        view.release()
        return bytes(data)

    def _wait(self, deadline: float | None, alive: Callable[[], bool]) -> None:
        """Wait until there is data to read."""
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
        """Close the socket and wake up a thread that waits for it."""
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

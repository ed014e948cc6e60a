"""The service's HTTP/1.1 connections, based on h11, for untrusted clients.

uvicorn's own protocol limits neither the time for a request head nor the number of connections, and responds to
malformed HTTP in plain text. This class replaces it and uses only uvicorn's way of starting a protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp

from dgpo_remote.answering import as_text, error_message
from dgpo_remote.server.exchange import TINY, Exchange
from dgpo_remote.server.pool import Clock, Phase, Pool

__all__ = ["Connection"]

LINGER = 2.0
"""Seconds for which further data is read and dropped after an error response: closing the connection while the client
still writes would lose the response."""
PROBE, PROBE_AGAIN = 0.25, 5.0
"""Seconds until a client that has closed its write side is probed, and until the next probe: a closed socket and a
half-closed one look the same until data is written to them."""
LATE = 5.0
"""Seconds beyond body_seconds after which a body that is no longer read closes the connection."""
LINES = 130
"""Most lines of a request head: parsing each header costs a few microseconds."""
AHEAD = 64 * 1024
"""Bytes of a body that are buffered for the application."""
PIECE = 4096
"""Bytes of a chunked body that are passed to h11 at a time; also the limit on its trailer."""
WHOLE_TARGET = re.compile(rb"https?://([^/?#@]+)((?:[/?].*)?)", re.IGNORECASE)
END_OF_HEAD = re.compile(rb"\n\r?\n")


class Connection(asyncio.Protocol):
    """One connection. It serves one request at a time; pipelined requests wait for the response before them."""

    def __init__(self, app: ASGIApp, pool: Pool, config: Any, server_state: Any, loop: Any = None) -> None:
        """config, server_state: those of uvicorn."""
        self.h11 = _parser()
        self.phase = Phase.HEAD
        self.since = Clock()
        """When the current phase began."""
        self.exchange: Exchange | None = None
        self._app = app
        self._pool = pool
        self._state = server_state
        self._loop = loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._head = bytearray()
        self._rest = bytearray()  # body data that h11 has not received yet
        self._next = bytearray()  # pipelined data, received before the current response was taken
        self._chunked = self._waits = self._paused = self._in_line = False
        self._writing = 0.0  # since when the client has not read what was written
        self._ended = False  # whether the client has closed its write side
        self._probe_at = 0.0  # when to probe a client that has closed its write side
        self._writable = asyncio.Event()
        self._writable.set()

    # -- called by asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or refuse it if there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._pool.admit(self):
            self.refuse(503, "busy", f"all {self._pool.most} connections are in use (connections.max)", reason="full")

    def data_received(self, data: bytes) -> None:
        """Process data of a request."""
        if self.phase is Phase.IDLE and not self._next and not self.unread_bytes():
            self._wait(Phase.HEAD)
        if self.phase is Phase.HEAD:
            self._take_head(data)
        elif self.phase is Phase.BODY:
            self._rest += data
            self._events()
        elif self.phase in (Phase.WORK, Phase.IDLE):
            self._next += data
            self.read_on()
            self._line_up()

    def eof_received(self) -> bool:
        """The client has closed its write side: it waits for the response (`nc -N`) or is gone.

        Returns True to keep the connection open.
        """
        self._ended = True
        self._refuse_half()
        self._probe_at = Clock() + PROBE
        return self.phase is Phase.WORK or (self.phase is Phase.IDLE and bool(self._next))

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed."""
        self._pool.connections.discard(self)
        self.phase = Phase.CLOSED
        self._writable.set()
        if self.exchange is not None:
            self.exchange.leave()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The write buffer has room again."""
        self._writable.set()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        self._head += data
        while self._head.startswith(b"\r\n"):  # empty lines before a request are allowed
            del self._head[:2]
        if bytes(self._head) in (b"", b"\r"):
            return
        end = END_OF_HEAD.search(self._head)
        size, most = end.end() if end else len(self._head), self._pool.section.head_kib
        if self._head[0] < 0x21:
            self._malformed("it begins with a control character; is it TLS?")
        elif size > most * 1024 or self._head.count(b"\n", 0, size) > LINES:
            message = f"the request head is larger than {most} KiB (connections.head_kib) or {LINES} lines"
            self.refuse(431, "size", message, reason="head")
        elif end:
            self._rest, self._head = self._head[size:], self._head[:size]
            self.h11.receive_data(bytes(self._head))
            self._head.clear()
            self._events()

    def _line_up(self) -> None:
        """Queue for `take_next` if there is pipelined data and the previous response has been read."""
        if self.phase is Phase.IDLE and self._next and not self._in_line and not self.unread_bytes():
            self._in_line = True
            self._pool.wait_for_answer(self, self._loop)

    def take_next(self) -> None:
        """Process pipelined data."""
        self._in_line = False
        if self.phase is Phase.IDLE and self._next:
            data = bytes(self._next)
            self._next.clear()
            self._wait(Phase.HEAD)
            self._take_head(data)
            self.read_on()
            if self._ended:
                self._refuse_half()

    def _refuse_half(self) -> None:
        """Refuse an incomplete request of a client that has closed its write side."""
        if self.phase is Phase.HEAD and self._head:
            self._malformed("it ends within its head")
        elif self.phase is Phase.BODY:
            self._malformed("it ends within its body")
        elif self.phase is Phase.HEAD:
            self._linger()

    def _events(self) -> None:
        """Process h11's events. A chunked body is processed in turns, so that many tiny chunks do not block others."""
        while self.phase in (Phase.HEAD, Phase.BODY) and not self._waits:
            if self._chunked and not self._pool.has_time(self._loop):
                self._waits = True
                self.read_on()
                self._pool.wait_for_turn(self)
                return
            try:
                event = self.h11.next_event()
            except h11.RemoteProtocolError as error:
                self._malformed(str(error), error.error_status_hint)
                return
            except Exception as error:  # h11 may fail on unexpected input
                self._malformed(type(error).__name__)
                return
            if event is h11.NEED_DATA and self._rest:
                count = PIECE if self._chunked else len(self._rest)
                self.h11.receive_data(bytes(self._rest[:count]))
                del self._rest[:count]
            elif event is h11.NEED_DATA or event is h11.PAUSED:
                return
            elif isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data) and self.exchange is not None:
                if not self.exchange.take(event.data, event.chunk_start):
                    self._malformed(f"its chunks hold fewer than {TINY} bytes on average")
                self.read_on()
            elif isinstance(event, h11.EndOfMessage) and self.exchange is not None:
                self._wait(Phase.WORK)
                self._next += self.h11.trailing_data[0] + self._rest
                self._rest.clear()
                self.read_on()
                self.exchange.end_of_body()

    def go_on(self) -> None:
        """Resume reading chunks."""
        self._waits = False
        self.read_on()
        self._events()

    def _begin(self, event: h11.Request) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        names = [name for name, _ in headers]
        version, target = event.http_version, bytes(event.target)
        if version not in (b"1.0", b"1.1"):
            self.refuse(505, "request", "the service supports only HTTP/1.1", reason="http")
            return
        if b"content-length" in names and b"transfer-encoding" in names:
            self._malformed("it has both a Content-Length and a Transfer-Encoding")
            return
        if whole := WHOLE_TARGET.fullmatch(
            target
        ):  # absolute form, as sent to proxies; its host replaces the Host header
            target = b"/" + whole[2].removeprefix(b"/")
            headers = [(name, whole[1] if name == b"host" else value) for name, value in headers]
        if not (target.startswith(b"/") or (target == b"*" and event.method == b"OPTIONS")):
            self._malformed("its target must be a path such as /v1/score")
            return
        if any(name == b"expect" and value.lower() != b"100-continue" for name, value in headers):
            self.refuse(417, "request", "the only supported value of Expect is 100-continue", reason="http")
            return
        raw, _, query = target.partition(b"?")
        self.exchange = Exchange(
            self,
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": version.decode(),
                "server": _address(self._transport.get_extra_info("sockname")),
                "client": _address(self._transport.get_extra_info("peername")),
                "scheme": "http",
                "method": event.method.decode(),
                "root_path": "",
                "path": unquote(raw.decode("ascii")),
                "raw_path": raw,
                "query_string": query,
                "headers": headers,
                "state": {},
            },
        )
        self._chunked = b"transfer-encoding" in names
        self._wait(Phase.BODY)
        task = self.exchange.task = self._loop.create_task(self.exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _malformed(self, what: str, status: int = 400) -> None:
        self.refuse(status, "request", f"not an HTTP request: {what}", reason="http")

    # -- responses ----------------------------------------------------------------------------------------------------

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every response, such as the date."""
        headers: list[tuple[bytes, bytes]] = self._state.default_headers
        return headers

    def write(self, *events: h11.Event) -> None:
        """Send events in one write, if the connection is open."""
        if data := b"".join(self.h11.send(event) or b"" for event in events):
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self.phase is not Phase.CLOSED and not self._transport.is_closing():
            if not self.unread_bytes():
                self._writing = Clock()
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the write buffer has room."""
        await self._writable.wait()

    def answered(self) -> None:
        """The response is written: wait for another request, or for the end of the connection."""
        over = self._ended and not self._next
        if self.phase is not Phase.WORK or over or self.h11.our_state is not h11.DONE:
            self._linger()
            return
        self.h11 = _parser()
        self._wait(Phase.IDLE)
        self._line_up()

    def refuse(self, status: int, kind: str, message: str, *, reason: str | None = None) -> None:
        """Send an error response without calling the application, and close."""
        self._pool.counters.refuse(reason or kind)
        exchange = self.exchange
        if exchange is not None and not exchange.complete:
            if exchange.started:
                self.abort()
                return
            exchange.leave()
        self._write(_error(status, kind, message))
        self._linger()

    def _linger(self) -> None:
        if self.phase is Phase.CLOSED or self._transport.is_closing():
            return
        self._wait(Phase.LINGER)
        for kept in (self._head, self._rest, self._next):
            kept.clear()
        if self._ended:
            self._transport.close()  # once everything is written
            return
        with contextlib.suppress(OSError):  # the client may be gone already
            self._transport.write_eof()
        self.read_on()

    def abort(self) -> None:
        """Close the connection immediately."""
        self._pool.connections.discard(self)
        self.phase = Phase.CLOSED
        self._transport.abort()

    # -- timeouts and flow control ------------------------------------------------------------------------------------

    def _wait(self, phase: Phase) -> None:
        self.phase, self.since = phase, Clock()

    def unread_bytes(self) -> int:
        """Return the bytes of responses that the client has not read."""
        return self._transport.get_write_buffer_size()

    def read_on(self) -> None:
        """Pause or resume reading, depending on the buffers."""
        full = self.phase is Phase.BODY and self.exchange is not None and len(self.exchange.body) > AHEAD
        paused = full or (self._waits and self.phase is Phase.BODY) or len(self._next) > AHEAD
        if paused != self._paused and not self._transport.is_closing():
            self._paused = paused
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def sweep(self, now: float) -> None:
        """Close the connection if a timeout has passed."""
        section, waited = self._pool.section, now - self.since
        if self.unread_bytes():
            if now - self._writing > section.answer_seconds:
                self._pool.counters.refuse("answer")
                self.abort()
            elif self.phase in (Phase.LINGER, Phase.IDLE):
                self.since = now
        elif self.phase is Phase.IDLE and self._next:
            self._line_up()
        elif self.phase is Phase.HEAD and waited > section.head_seconds:
            if self._head:
                message = (
                    f"the request head was not received within {section.head_seconds:g} s (connections.head_seconds)"
                )
                self.refuse(408, "timeout", message, reason="head")
            else:
                self.abort()
        elif (
            (self.phase is Phase.IDLE and waited > section.keep_alive_seconds)
            or (self.phase is Phase.LINGER and waited > LINGER)
            or (self.phase is Phase.BODY and waited > section.body_seconds + LATE)
        ):
            self.abort()
        elif self.phase is Phase.WORK and self._ended:
            self._probe(now)

    def _probe(self, now: float) -> None:
        """Close the connection if a client that closed its write side is gone. Clients ignore the probe, a 100."""
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
        elif now >= self._probe_at and self.exchange is not None and not self.exchange.started:
            self._probe_at = now + PROBE_AGAIN
            if self.exchange.scope["http_version"] == "1.1":
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=PIECE)


def _address(address: Any) -> tuple[str, int] | None:
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None


def _error(status: int, kind: str, message: str) -> bytes:
    body = as_text(error_message(kind, message)).encode()
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body

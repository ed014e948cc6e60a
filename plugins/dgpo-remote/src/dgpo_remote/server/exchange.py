"""One request and its response: the ASGI side of a connection."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Protocol

import h11
from h11 import Event
from starlette.types import ASGIApp, Message, Scope

from dgpo_schemas.text import error_text

__all__ = ["TINY", "Exchange"]

log = logging.getLogger(__name__)

CLOSE = (b"connection", b"close")
TINY, FREE = 64, 250
"""Minimum average size of a body's chunks in bytes, and the number of chunks that are exempt: each chunk costs a few
microseconds regardless of its size."""


class Carrier(Protocol):
    """The interface of a connection that an exchange uses."""

    h11: Any
    """The `h11.Connection`."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of every response."""

    def write(self, *events: Event) -> None:
        """Send events."""

    async def drained(self) -> None:
        """Wait until the write buffer has room."""

    def answered(self) -> None:
        """The response is complete."""

    def refuse(self, status: int, kind: str, message: str, *, reason: str | None = None) -> None:
        """Send an error response and close."""

    def read_on(self) -> None:
        """Read more of the body if there is room."""

    def abort(self) -> None:
        """Close the connection immediately."""


class Exchange:
    """Runs the application for one request. `task` is cancelled when the client disconnects."""

    def __init__(self, connection: Carrier, scope: Scope) -> None:
        self.scope = scope
        self.body = bytearray()
        """Received body data that the application has not taken yet."""
        self.whole = False
        """Whether the whole body has been received."""
        self.gone = False
        """Whether the client has disconnected."""
        self.started = self.complete = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._changed = asyncio.Event()
        self._delivered = False  # whether the application has the whole body
        self._chunks = self._bytes = 0
        self._head: h11.Event | None = None  # of the response, held back until there is a body to send with it

    # -- on the connection's side -------------------------------------------------------------------------------------

    def take(self, data: bytes | bytearray, chunk: bool) -> bool:
        """Add body data. Returns False if the chunks are too small on average."""
        self._bytes += len(data)
        self._chunks += chunk
        if not (self.complete or self.gone):
            self.body += data
            self._changed.set()
        return self._chunks <= FREE or self._bytes >= TINY * (self._chunks - FREE)

    def end_of_body(self) -> None:
        """The body is complete."""
        self.whole = True
        self._changed.set()

    def leave(self) -> None:
        """The client has disconnected: cancel the request."""
        self.gone = True
        self.body.clear()
        self._changed.set()
        if self.task is not None and not self.complete:
            self.task.cancel()

    # -- on the application's side ------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp) -> None:
        """Run the application, and respond even if it fails."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self.gone:
                self._connection.abort()
        except BaseException as error:  # SystemExit would end the event loop
            log.error("a request failed: %s", error_text(error))
        if self.complete or self.gone:
            return
        if self.started:
            self._connection.abort()  # a partial response must not look complete
        else:
            self._connection.refuse(500, "internal", "internal error of the service; see its log")

    async def receive(self) -> Message:
        """Return the next part of the body, or `http.disconnect`."""
        if self._connection.h11.they_are_waiting_for_100_continue and not (self.started or self.gone):
            self._connection.write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while not (self.gone or self.complete) and (self._delivered or not (self.body or self.whole)):
            self._connection.read_on()
            self._changed.clear()
            await self._changed.wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        data, self.body = bytes(self.body), bytearray()
        self._delivered = self.whole
        self._connection.read_on()
        return {"type": "http.request", "body": data, "more_body": not self.whole}

    async def send(self, message: Any) -> None:
        """Send a part of the response, and wait if the client reads slowly."""
        if self.gone:
            return
        if message["type"] == "http.response.start" and not self.started:
            self.started = True
            headers = [*self._connection.default_headers, *message.get("headers", [])]
            if not self.whole:
                headers.append(CLOSE)  # the rest of the body is not read
            status = message["status"]
            reason = HTTPStatus(status).phrase.encode()
            self._head = h11.Response(status_code=status, headers=headers, reason=reason)
            return
        more = message.get("more_body", False)
        data = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        events = [self._head, h11.Data(data=data) if data else None, None if more else h11.EndOfMessage()]
        self._head = None
        self._connection.write(*filter(None, events))
        if more:
            await self._connection.drained()
            return
        self.complete = True
        self._changed.set()
        self._connection.answered()

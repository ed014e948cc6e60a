"""One request and its answer: the ASGI side of a connection."""

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
"""Bytes that the chunks of a body must hold on the average, and chunks of which nothing is asked: every one costs some
microseconds, whatever it holds."""


class Carrier(Protocol):
    """A connection, as an exchange knows it."""

    h11: Any
    """Its h11.Connection."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Of every answer."""

    def write(self, *events: Event) -> None:
        """Send them."""

    async def drained(self) -> None:
        """Until the caller has taken enough of what was sent."""

    def answered(self) -> None:
        """The answer is whole."""

    def refuse(self, status: int, kind: str, message: str, *, reason: str | None = None) -> None:
        """Answer with an error, and end."""

    def read_on(self) -> None:
        """More of the body is wanted."""

    def abort(self) -> None:
        """End it at once."""


class Exchange:
    """Runs the application for one request. `task` is cancelled when the caller goes away."""

    def __init__(self, connection: Carrier, scope: Scope) -> None:
        self.scope = scope
        self.body = bytearray()
        """What has come and was not taken yet."""
        self.whole = False
        """Whether all of the body has come."""
        self.gone = False
        """Whether nobody waits for the answer any more."""
        self.started = self.complete = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._come = asyncio.Event()
        self._given = False  # whether the application has all of the body
        self._chunks = self._bytes = 0
        self._head: h11.Event | None = None  # of the answer, until there is something to send with it

    # -- on the connection's side -------------------------------------------------------------------------------------

    def take(self, data: bytes | bytearray, chunk: bool) -> bool:
        """A piece of the body; False if the pieces are too tiny."""
        self._bytes += len(data)
        self._chunks += chunk
        if not (self.complete or self.gone):
            self.body += data
            self._come.set()
        return self._chunks <= FREE or self._bytes >= TINY * (self._chunks - FREE)

    def end_of_body(self) -> None:
        """There is no more of it."""
        self.whole = True
        self._come.set()

    def leave(self) -> None:
        """Nobody waits for the answer: what is being done for it ends."""
        self.gone = True
        self.body.clear()
        self._come.set()
        if self.task is not None and not self.complete:
            self.task.cancel()

    # -- on the application's side ------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp) -> None:
        """Answer the request, whatever the application does."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self.gone:
                self._connection.abort()
        except BaseException as error:  # SystemExit would end the event loop
            log.error("a request could not be answered: %s", error_text(error))
        if self.complete or self.gone:
            return
        if self.started:
            self._connection.abort()  # half an answer must not look like a whole one
        else:
            self._connection.refuse(500, "internal", "the service could not answer; its log says why")

    async def receive(self) -> Message:
        """More of the body, or that the caller has gone."""
        if self._connection.h11.they_are_waiting_for_100_continue and not (self.started or self.gone):
            self._connection.write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while not (self.gone or self.complete) and (self._given or not (self.body or self.whole)):
            self._connection.read_on()
            self._come.clear()
            await self._come.wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        data, self.body = bytes(self.body), bytearray()
        self._given = self.whole
        self._connection.read_on()
        return {"type": "http.request", "body": data, "more_body": not self.whole}

    async def send(self, message: Any) -> None:
        """The answer, piece by piece; not faster than the caller takes it."""
        if self.gone:
            return
        if message["type"] == "http.response.start" and not self.started:
            self.started = True
            headers = [*self._connection.default_headers, *message.get("headers", [])]
            if not self.whole:
                headers.append(CLOSE)  # the rest of the body is not waited for
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
        self._come.set()
        self._connection.answered()

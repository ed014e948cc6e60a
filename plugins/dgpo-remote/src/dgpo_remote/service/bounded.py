"""Requests that take no longer than asked for: httpx bounds the time between two pieces of an answer; here all pieces
together are bounded, headers included."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

__all__ = ["Network", "bounded"]

SLICE = 0.5
"""Seconds between two looks at whether somebody wants to know."""
PIECE = 2**16
"""Bytes that are sent between two looks at the clock."""


class _Limit(threading.local):
    """What the requests of this thread are bound to."""

    deadline: float | None = None
    look: Callable[[], None] | None = None


_LIMIT = _Limit()


@contextmanager
def bounded(seconds: float, look: Callable[[], None] | None = None) -> Iterator[None]:
    """Bound all requests that this thread makes meanwhile. `look` is called now and then while it waits for an answer;
    what it raises ends the request."""
    _LIMIT.deadline, _LIMIT.look = time.monotonic() + seconds, look
    try:
        yield
    finally:
        _LIMIT.deadline = _LIMIT.look = None


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """Seconds that one piece may take. Raises `error` when the time is over."""
    if _LIMIT.deadline is None:
        return timeout
    left = _LIMIT.deadline - time.monotonic()
    if left <= 0:
        raise error("the time is over")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection whose pieces are bound to the thread's limit."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _left(None if until is None else max(0.0, until - time.monotonic()), httpcore.ReadTimeout)
            last = left is not None and left <= SLICE
            try:
                return self._inner.read(max_bytes, left if last or left is None else SLICE)
            except httpcore.ReadTimeout:
                if last:
                    raise
                if _LIMIT.look is not None:
                    _LIMIT.look()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE):
            self._inner.write(bytes(view[start : start + PIECE]), _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Network(httpcore.SyncBackend):
    """Connections whose requests are bound by `bounded`."""

    def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(*arguments, **options))

"""A total timeout per HTTP request, headers included: httpx bounds only the time between two chunks of a response."""

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
"""Seconds between two calls of `on_wait` while waiting."""
PIECE = 2**16
"""Bytes sent between two checks of the deadline."""


class _Limit(threading.local):
    """The deadline of this thread's requests."""

    deadline: float | None = None
    on_wait: Callable[[], None] | None = None


_LIMIT = _Limit()


@contextmanager
def bounded(seconds: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Limit the total time of all requests that this thread makes inside the context.

    `on_wait` is called periodically while the thread waits for a response; an exception from it ends the request.
    """
    _LIMIT.deadline, _LIMIT.on_wait = time.monotonic() + seconds, on_wait
    try:
        yield
    finally:
        _LIMIT.deadline = _LIMIT.on_wait = None


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """Return the timeout for one chunk in seconds. Raises `error` after the deadline."""
    if _LIMIT.deadline is None:
        return timeout
    left = _LIMIT.deadline - time.monotonic()
    if left <= 0:
        raise error("deadline exceeded")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A network stream that respects the thread's deadline."""

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
                if _LIMIT.on_wait is not None:
                    _LIMIT.on_wait()

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
    """A network backend whose connections respect `bounded`."""

    def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(*arguments, **options))

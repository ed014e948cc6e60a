"""How requests travel: through the proxy that `proxies` decides on for each address, and never longer than asked for.

httpx bounds the time between two pieces of an answer; here all pieces together are bounded, headers included.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpcore
import httpx

from dgpo_core.errors import UserError
from dgpo_core.system.proxies import Proxy, UnusableProxy, route
from dgpo_schemas.text import error_text

__all__ = ["Routed", "bounded", "certificates"]

log = logging.getLogger(__name__)

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


class _Network(httpcore.SyncBackend):
    """Connections of this kind."""

    def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(*arguments, **options))


def certificates(environment: bool) -> ssl.SSLContext:
    """What https trusts: SSL_CERT_FILE or SSL_CERT_DIR where they are set, else certifi's list. Without `environment`:
    nothing, for connections that need none. Raises UserError for a variable that leads nowhere."""
    if not environment:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the lists take a while to read
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise UserError(
            f"{name}: {os.environ.get(name, '')!r} cannot be read as certificates: {error}; name a PEM file "
            "in SSL_CERT_FILE, or a directory of them in SSL_CERT_DIR"
        ) from error


class Routed:
    """A transport for a client of httpx, or of a library with its interface, that asks `proxies.route` for each
    request. May be used from any thread."""

    def __init__(self, library: ModuleType, *, limits: Any = None, tell: bool = False) -> None:
        """tell: log, once, why a proxy could not be used or reached."""
        self._library = library
        self._tell = tell
        self._told: set[str] = set()
        self._limits = {} if limits is None else {"limits": limits}
        self._made: dict[tuple[str | None, bool], Any] = {}
        self._making = threading.Lock()

    def handle_request(self, request: Any) -> Any:
        """Send a request. Raises the library's ConnectError, which names the proxy, where it is the proxy that cannot
        be used or reached; libraries are prepared for that error, and for those of proxies they are not."""
        url = request.url
        try:
            proxy = route(f"{url.scheme}://{url.netloc.decode('ascii')}")
        except UnusableProxy as error:
            raise self._failed(str(error), request) from error
        transport = self._transport(proxy, url.scheme == "https")
        if proxy is None:
            return transport.handle_request(request)
        try:
            return transport.handle_request(request)
        except (self._library.ProxyError, self._library.ConnectError) as error:
            raise self._failed(f"{error_text(error, 300)} through {proxy}", request) from error

    def _failed(self, message: str, request: Any) -> Exception:
        if self._tell and message not in self._told:  # the library may have words of its own instead
            self._told.add(message)
            log.warning("%s", message)
        made: Exception = self._library.ConnectError(message, request=request)
        return made

    def _transport(self, proxy: Proxy | None, secure: bool) -> Any:
        key = (None if proxy is None else proxy.url, secure)
        with self._making:
            if key not in self._made:
                self._made[key] = self._make(proxy, secure)
            return self._made[key]

    def _make(self, proxy: Proxy | None, secure: bool) -> Any:
        options: dict[str, Any] = dict(self._limits, verify=certificates(secure))
        if proxy is not None:
            trusted = certificates(True) if proxy.url.lower().startswith("https:") else None
            options["proxy"] = self._library.Proxy(proxy.url, ssl_context=trusted)
        made = self._library.HTTPTransport(**options)
        if self._library is httpx:
            made._pool._network_backend = _Network()
        return made

    def close(self) -> None:
        """Close the connections."""
        with self._making:
            made = list(self._made.values())
            self._made.clear()
        for transport in made:
            transport.close()

    def __enter__(self) -> Routed:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()

"""Send HTTP requests through the proxy that `proxies.route` selects for each address."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from types import ModuleType
from typing import Any

import httpx

from dgpo_core.errors import UserError
from dgpo_core.system.proxies import Proxy, UnusableProxy, route
from dgpo_schemas.text import error_text

__all__ = ["Routed", "certificates"]

log = logging.getLogger(__name__)


def certificates(environment: bool) -> ssl.SSLContext:
    """Return an SSL context that trusts SSL_CERT_FILE or SSL_CERT_DIR if set, else the certificates of certifi.

    Without `environment`, it trusts none, for connections without TLS. Raises UserError if a variable names no
    readable file.
    """
    if not environment:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading certificates takes a while
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise UserError(
            f"{name}: {os.environ.get(name, '')!r} cannot be read as certificates: {error}; name a PEM file "
            "in SSL_CERT_FILE, or a directory of them in SSL_CERT_DIR"
        ) from error


class Routed:
    """A transport for httpx, or a library with its interface, that calls `proxies.route` for each request.

    Thread-safe.
    """

    def __init__(
        self, library: ModuleType, *, limits: Any = None, network: Any = None, on_message: bool = False
    ) -> None:
        """network: an httpcore network backend that opens connections. on_message: log, once per reason, why a proxy
        cannot be used or reached."""
        self._library = library
        self._network = network
        self._report = on_message
        self._reported: set[str] = set()
        self._limits = {} if limits is None else {"limits": limits}
        self._made: dict[tuple[str | None, bool], Any] = {}
        self._making = threading.Lock()

    def handle_request(self, request: Any) -> Any:
        """Send a request.

        Raises the library's ConnectError, naming the proxy, if the proxy cannot be used or reached: libraries handle
        that error, but not errors specific to proxies.
        """
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
        if self._report and message not in self._reported:  # the library may replace the message
            self._reported.add(message)
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
        if self._network is not None:
            made._pool._network_backend = self._network
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

"""The HTTP server of the live page: reads runs, never writes; only what it lists can be asked for."""

from __future__ import annotations

import errno
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dgpo_core.errors import UserError
from dgpo_core.system.reading import why
from dgpo_lab.watching.access import Access
from dgpo_lab.watching.answers import changes, listing, panels
from dgpo_lab.watching.diagnosing import Doctor, examine
from dgpo_lab.watching.discovery import Watched
from dgpo_lab.watching.samples import KINDS, media, samples_of
from dgpo_lab.watching.status import LOGS

__all__ = ["PageServer"]

log = logging.getLogger(__name__)

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in ("watch.js", "figures.js", "logs.js")},
    "/watch.css": ("watch.css", "text/css; charset=utf-8"),
}
"""The files of the page and their content types."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MOST_CONNECTIONS = 64
PATIENCE = 30.0
"""Seconds after which an idle connection is closed."""
Query = Mapping[str, str]


class PageServer(ThreadingHTTPServer):
    """A server of watched runs on `host`:`port` (0: any free port). Raises UserError if it cannot listen there."""

    daemon_threads = True

    def __init__(self, watched: Watched, access: Access, host: str, port: int) -> None:
        self.watched, self.access = watched, access
        self.doctor = Doctor(examine)
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            self.address_family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
            super().__init__((str(address[0]), port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(_cannot_listen(host, port, error)) from error

    def server_bind(self) -> None:
        """Bind without looking the machine's name up, which takes seconds on some networks."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection on its thread, or close it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an unexpected error in one line; a browser that went away is none."""
        import sys

        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("a request failed: %s: %s", type(error).__name__, error)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dgpo", ""
    timeout = PATIENCE
    disable_nagle_algorithm = True  # else an answer's body waits 40 ms for the acknowledgement of its headers

    def do_GET(self) -> None:
        """Check who asks, then answer."""
        access, url = self.server.access, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if not access.is_ours(self.headers.get("Host", "")):
            text = "this address is not the server's own; start dgpo watch with --allow-host NAME to allow this name\n"
            self._text(HTTPStatus.MISDIRECTED_REQUEST, text)
        elif access.token is not None and url.path == "/" and "token" in query:
            self._enter(query["token"])
        elif not access.admits(self.headers.get("Cookie", ""), self.headers.get("Authorization", ""), self._cookie):
            self._text(HTTPStatus.UNAUTHORIZED, "open the address that dgpo watch printed, with ?token=\n")
        elif url.path in PAGE:
            name, kind = PAGE[url.path]
            self._send(HTTPStatus.OK, _page(name), kind, "no-cache")
        else:
            self._answer(url.path, query)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Refuse: the page is read-only."""
        self.close_connection = True  # the body is not read
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "read-only: GET and HEAD\n", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    @property
    def _cookie(self) -> str:
        """The cookie's name: cookies do not distinguish ports, so the name does."""
        return f"dgpo-watch-{self.server.server_port}"

    def _enter(self, token: str) -> None:
        """Exchange the token in the address for a cookie, so that it does not stay in the browser's history."""
        if not self.server.access.opens(token):
            self._text(HTTPStatus.FORBIDDEN, "this is not the token\n")
            return
        cookie = f"{self._cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
        self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", "no-store", {"Location": "/", "Set-Cookie": cookie})

    def _answer(self, path: str, query: Query) -> None:
        routes: dict[str, Callable[[Query], Any]] = {
            "/api/runs": lambda _: listing(self.server.watched),
            "/api/panels": lambda _: panels(),
            "/api/changes": self._changes,
            "/api/samples": self._samples,
            "/api/doctor": self._doctor,
        }
        try:
            if path == "/media":
                self._media(query)
            elif path in routes:
                self._json(HTTPStatus.OK, routes[path](query))
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": "no such page"})
        except _UnknownError as error:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except UserError as error:
            self._json(HTTPStatus.OK, {"fault": str(error)})

    def _run(self, query: Query) -> Any:
        run = self.server.watched.run(query.get("id", ""))
        if run is None:
            raise _UnknownError("no such run")
        return run

    def _changes(self, query: Query) -> Any:
        return changes(self._run(query), {name: query.get(name.removesuffix(".jsonl"), "") for name in LOGS})

    def _samples(self, query: Query) -> Any:
        return {
            "iteration": _whole(query, "iteration"),
            "samples": samples_of(self._run(query), _whole(query, "iteration")),
        }

    def _doctor(self, query: Query) -> Any:
        return self.server.doctor.ask(self._run(query))

    def _media(self, query: Query) -> None:
        kind = query.get("kind", "png")
        data = media(self._run(query), _whole(query, "iteration"), _whole(query, "index"), kind)
        if data is None:
            raise _UnknownError("no such sample")
        self._send(HTTPStatus.OK, data, KINDS[kind][0], "private, max-age=3600")

    def _json(self, code: HTTPStatus, data: Any) -> None:
        raw = json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
        self._send(code, raw, "application/json", "no-store")

    def _text(self, code: HTTPStatus, text: str, more: Mapping[str, str] | None = None) -> None:
        self._send(code, text.encode(), "text/plain; charset=utf-8", "no-store", more)

    def _send(self, code: HTTPStatus, data: bytes, kind: str, keep: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        sent = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": keep,
            **HEADERS,
            **(more or {}),
        }
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print no line for each request."""


class _UnknownError(Exception):
    """Something was asked for that is not there."""


def _whole(query: Query, name: str) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise _UnknownError(f"{name}: not a whole number")
    return int(text)


@cache
def _page(name: str) -> bytes:
    return files("dgpo_lab").joinpath("watching", "page", name).read_bytes()


def _cannot_listen(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"--port {port}: is in use on {host}; choose another port, or --port 0 for any free one"
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return f"--port {port}: only the superuser may listen on it; choose a port from 1024, or --port 0 for any"
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL):
        return f"--host {host}: is not an address of this machine; allowed are its addresses, localhost, 0.0.0.0 and ::"
    return f"cannot listen on {host}, port {port}: {why(error)}"

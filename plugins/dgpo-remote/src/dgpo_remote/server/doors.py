"""Access control: the bearer token, and protection against requests from web pages.

A browser sends requests to services on its own machine on behalf of any page. It names the page's origin in `Origin`
(or sends `Sec-Fetch-Site: cross-site` without one), and the service's host name in `Host`, which reveals DNS rebinding:
a page whose name was later bound to 127.0.0.1.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgpo_remote.answering import as_text, error_message
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.counters import Counters
from dgpo_schemas.serve import ServeConfig, is_loopback
from dgpo_schemas.service import REQUEST
from dgpo_schemas.text import clean

__all__ = ["Doors", "refusal_answer"]

GUARDED = "/v1/"
CORS = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": f"authorization, content-type, {REQUEST.lower()}",
    "Access-Control-Max-Age": "600",
}


class Doors:
    """Middleware that rejects unauthorized requests and handles OPTIONS."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, token: str | None, methods: Mapping[str, str], counters: Counters
    ) -> None:
        """methods: the `Allow` header of each path."""
        self._app = app
        self._config = config
        self._token = token
        self._methods = methods
        self._counters = counters
        self._own_names = token is None and is_loopback(config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers, path = Headers(scope=scope), scope["path"]
        try:
            allowed = self._check(headers, path, scope["method"])
        except Refusal as refusal:
            self._counters.refuse(refusal.kind)
            await refusal_answer(refusal)(scope, receive, send)
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start" and allowed is not None:
                response_headers = MutableHeaders(scope=message)
                response_headers["Access-Control-Allow-Origin"] = allowed
                response_headers.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and (path in self._methods or path == "*"):
            answer = Response(status_code=204, headers={"Allow": self._methods.get(path, "GET, HEAD, POST, OPTIONS")})
            if allowed is not None:
                answer.headers.update(CORS)
            await answer(scope, receive, send_with_origin)
            return
        await self._app(scope, receive, send_with_origin)

    def _check(self, headers: Headers, path: str, method: str) -> str | None:
        """Return the web page's origin, or None if the request has none. Raises Refusal: 401 and 403."""
        if not path.startswith(GUARDED):
            return None
        origin = self._checked_origin(headers)
        if self._own_names and not self._is_own(headers.get("host", "localhost")):
            raise Refusal(
                403,
                "origin",
                f"the service listens only on this machine and does not accept the host "
                f"{clean(headers['host'], 100)!r}: address it as {self._config.host} or localhost, or set "
                "token_variable so that clients send a token",
            )
        if self._token is not None and method != "OPTIONS" and not self._has_token(headers):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "token", "send the token: `Authorization: Bearer TOKEN`", challenge)
        return origin

    def _checked_origin(self, headers: Headers) -> str | None:
        origins = headers.getlist("origin")
        foreign = [origin for origin in origins if origin not in self._config.origins]
        if not origins and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            foreign = ["another site"]
        if foreign:
            raise Refusal(
                403,
                "origin",
                f"requests from web pages of {clean(foreign[0], 200)!r} are not allowed; to allow them, list their "
                "origin in the reward file's `origins`",
            )
        return origins[0] if origins else None

    def _is_own(self, host: str) -> bool:
        name = host.lower()
        if not name.endswith("]"):
            bare, colon, port = name.rpartition(":")
            name = bare if colon and port.isascii() and port.isdigit() else name
        own = (self._config.host.lower(), f"[{self._config.host.lower()}]")
        return is_loopback(name) or name.rstrip(".") == "localhost" or name in own

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = (self._token or "").encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected)


def refusal_answer(refusal: Refusal) -> Response:
    """Return the error response for a rejected request."""
    text = as_text(error_message(refusal.kind, str(refusal)))
    return Response(text, refusal.status, refusal.headers, "application/json")

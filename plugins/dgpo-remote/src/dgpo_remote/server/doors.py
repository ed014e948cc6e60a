"""Who may ask: the token, and what browsers tell of the pages that make them ask.

A browser sends requests to services on its own machine for any page that it shows. It names the page in `Origin` (or
says `Sec-Fetch-Site: cross-site` where it names none), and the name under which it found the service in `Host`: a page
whose name was bound to 127.0.0.1 afterwards shows there.
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
    """Lets requests through to the application, or answers that they may not ask; answers OPTIONS."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, token: str | None, methods: Mapping[str, str], counters: Counters
    ) -> None:
        """methods: what may be done with each path, as `Allow` says it."""
        self._app = app
        self._config = config
        self._token = token
        self._methods = methods
        self._counters = counters
        self._own_names = token is None and is_loopback(config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers, path = Headers(scope=scope), scope["path"]
        try:
            allowed = self._check(headers, path, scope["method"])
        except Refusal as refusal:
            self._counters.refuse(refusal.kind)
            await refusal_answer(refusal)(scope, receive, send)
            return

        async def to_the_page(message: Message) -> None:
            if message["type"] == "http.response.start" and allowed is not None:
                reported = MutableHeaders(scope=message)
                reported["Access-Control-Allow-Origin"] = allowed
                reported.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and (path in self._methods or path == "*"):
            answer = Response(status_code=204, headers={"Allow": self._methods.get(path, "GET, HEAD, POST, OPTIONS")})
            if allowed is not None:
                answer.headers.update(CORS)
            await answer(scope, receive, to_the_page)
            return
        await self._app(scope, receive, to_the_page)

    def _check(self, headers: Headers, path: str, method: str) -> str | None:
        """The page's origin, None where there is no page. Raises Refusal: 401 and 403."""
        if not path.startswith(GUARDED):
            return None
        origin = self._checked_origin(headers)
        if self._own_names and not self._is_own(headers.get("host", "localhost")):
            raise Refusal(
                403,
                "origin",
                f"the service listens on this machine only and is not known as {clean(headers['host'], 100)!r}: ask it "
                f"as {self._config.host} or localhost, or set token_variable, so that callers show a token",
            )
        if self._token is not None and method != "OPTIONS" and not self._has_token(headers):
            reported = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "token", "send the token: `Authorization: Bearer TOKEN`", reported)
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
                f"web pages of {clean(foreign[0], 200)!r} may not ask; list their origin in the reward file's "
                "`origins` if they should",
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
        wanted = (self._token or "").encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted)


def refusal_answer(refusal: Refusal) -> Response:
    """What is answered to a request that is not served."""
    text = as_text(error_message(refusal.kind, str(refusal)))
    return Response(text, refusal.status, refusal.headers, "application/json")

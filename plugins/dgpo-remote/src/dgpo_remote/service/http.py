"""HTTP requests to a reward service, with limits on time and size, and the interpretation of its responses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, cast

import httpx

from dgpo_core.errors import UserError
from dgpo_core.system.proxies import Proxy, UnusableProxy, route
from dgpo_core.system.routed import Routed, certificates
from dgpo_remote.failures import (
    Busy,
    Down,
    InvalidResponse,
    NotAService,
    Refused,
    TooLarge,
    as_object,
    raise_reward_error,
    reported_error,
)
from dgpo_remote.service.bounded import Network, bounded
from dgpo_remote.tokens import read_token
from dgpo_schemas.addresses import shown_address
from dgpo_schemas.service import REQUEST
from dgpo_schemas.text import clean, error_text

__all__ = ["Client"]

CONNECT = 5.0
"""Connection timeout in seconds."""
MAX_ANSWER = 256 * 2**20
"""Largest response body in bytes."""
MAX_JSON = 8 * 2**20
"""Largest JSON response body in bytes."""
MAX_ERROR = 2**16
"""Bytes that are read of an error response."""
MAX_PAUSE = 30.0
"""Longest wait in seconds that a Retry-After header can ask for."""
KINDS = ("request", "token", "origin", "size", "type", "busy", "timeout", "reward", "memory", "user", "plugin")
"""Known error kinds of a service. An unknown kind counts as a failure of the server."""


class Client:
    """A connection pool that sends the token with each request. Thread-safe."""

    def __init__(
        self,
        where: str,
        token_variable: str | None,
        connections: int,
        urls: Sequence[str],
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """urls: all servers; on_wait: called periodically while a response is pending.

        Raises UserError if the token's variable is not set or not a valid token, or if the environment configures an
        unusable proxy for a server.
        """
        self._token_variable = token_variable
        self._on_wait = on_wait
        headers = {"Accept-Encoding": "identity"}
        if (token := read_token(token_variable, f"{where}.service.")) is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._proxies = {_origin(url): _proxy(url, where) for url in urls}
        if any(httpx.URL(url).scheme == "https" for url in urls):
            certificates(True)  # report unreadable certificates now
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.Client(
            headers=headers,
            transport=cast(httpx.BaseTransport, Routed(httpx, limits=limits, network=Network())),
            trust_env=False,  # httpx crashes on proxy variables that it cannot parse
        )

    def ask(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = MAX_ANSWER,
    ) -> bytes:
        """Send a request and return the body of a response with status 200.

        timeout: total seconds; most: largest response in bytes. Raises Down, Busy, Refused, RewardRaised and
        OutOfMemory.

        Servers echo the request ID, so that a late or duplicate response on a reused connection is not taken for this
        request's. Without an ID in the response, the order of responses has to do.
        """
        limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
        number = uuid.uuid4().hex
        sent = {**(headers or {}), REQUEST: number}
        address, proxy = httpx.URL(url), self._proxies.get(_origin(url))
        via = "" if proxy is None else f" through {proxy}"
        # Keep user name and password out of the URL: libraries log URLs.
        account = httpx.BasicAuth(address.username, address.password) if address.userinfo else None
        address = address.copy_with(userinfo=b"")
        try:
            with (
                bounded(timeout, self._on_wait),
                self._client.stream(
                    method, address, content=content, headers=sent, timeout=limits, auth=account
                ) as response,
            ):
                if response.headers.get(REQUEST, number) != number:  # unread, so httpx closes the connection
                    raise InvalidResponse(f"sent the response of another request{via}")
                body = _read(response, most, timeout)
        except httpx.ConnectTimeout as error:
            raise Down(f"could not connect within {min(CONNECT, timeout):g} s{via}") from error
        except httpx.TimeoutException as error:
            raise Down(f"no complete response within {timeout:g} s ({type(error).__name__}){via}") from error
        except httpx.ConnectError as error:
            if isinstance(error.__cause__, httpx.ProxyError) and str(error.__cause__).startswith("407"):
                raise Refused(_proxy_password(proxy)) from error
            if proxy is not None:  # the message names the proxy
                raise Down(clean(str(error))) from error
            raise Down(error_text(error)) from error
        # RuntimeError: the client was closed. ValueError: a host name or a header cannot be encoded or decoded.
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, RuntimeError, ValueError, OSError) as error:
            raise Down(f"{error_text(error)}{via}") from error
        self._judge(response, body, proxy)
        return body

    def ask_json(self, method: str, url: str, *, timeout: float, content: bytes | None = None) -> dict[str, Any]:
        """Send a request with a JSON body or none, and return the JSON object of the response."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        body = self.ask(method, url, timeout=timeout, content=content, headers=headers, most=MAX_JSON)
        answer = as_object(body)
        if answer is None:
            raise InvalidResponse(f"did not respond with a JSON object: {_excerpt(body)}{self._via(url)}")
        return answer

    def _via(self, url: str) -> str:
        proxy = self._proxies.get(_origin(url))
        return "" if proxy is None else f" through {proxy}"

    def _judge(self, response: httpx.Response, body: bytes, proxy: Proxy | None) -> None:
        """Raise the error that a status other than 200 means."""
        status = response.status_code
        via = "" if proxy is None else f" through {proxy}"
        if status == 200:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise InvalidResponse(f"responded with the unrequested Content-Encoding {clean(encoding, 40)}{via}")
            return
        reported = reported_error(body)
        kind, text = reported or ("", "")
        message = text or f"status {status}: {_excerpt(body)}{via}"
        if status == 407:
            raise Refused(_proxy_password(proxy))
        if 300 <= status < 400:
            to = shown_address(response.headers.get("Location", "nowhere"))
            raise InvalidResponse(f"responded with a redirect (status {status}) to {to}, which is not followed{via}")
        if status in (429, 503):
            raise Busy(message, _pause(response.headers.get("Retry-After")))
        if reported is not None and kind not in KINDS:  # a failure that this version does not know
            raise Down(message)
        if status in (401, 403):
            raise Refused(message if kind == "origin" else f"{message} ({self._token_hint()})")
        if status == 413:
            raise TooLarge(message)
        if 400 <= status < 500 and status != 408:
            raise Refused(message) if reported else NotAService(message)
        raise_reward_error(kind, message)
        raise Down(message)

    def _token_hint(self) -> str:
        if self._token_variable is None:
            return "set service.token_variable to the environment variable that holds the server's token"
        return f"the token in the environment variable {self._token_variable} does not match the server's"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _proxy(url: str, where: str) -> Proxy | None:
    try:
        return route(url)
    except UnusableProxy as error:
        raise UserError(f"{where}.service.urls: {error}") from error


def _proxy_password(proxy: Proxy | None) -> str:
    if proxy is None:
        return "status 407: a proxy that is not configured here requires a password"
    return (
        f"{proxy} requires a user name and password (status 407); set them in {proxy.variable}: "
        "http://NAME:PASSWORD@..."
    )


def _read(response: httpx.Response, most: int, timeout: float) -> bytes:
    """Read the raw body up to `most` bytes; of an error response only the first `MAX_ERROR` bytes or so."""
    cut = response.status_code != 200
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if cut and len(body) > MAX_ERROR:
            break
        if len(body) > most:
            raise Down(f"the response is larger than {most >> 20} MiB")
    return bytes(body)


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return f"'{clean(text, 80)}'" if text else "nothing"


def _pause(value: str | None) -> float:
    """Return the seconds of a Retry-After header, which is a number or a date."""
    try:
        seconds = float(value or 1)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = 1.0
    return min(MAX_PAUSE, seconds) if seconds > 0 else 0.1

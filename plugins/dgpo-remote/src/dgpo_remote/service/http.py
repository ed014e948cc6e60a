"""One HTTP exchange with a reward service, bounded in time and size, and what its answer means."""

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
from dgpo_remote.failures import Busy, Down, Nonsense, Refused, Stranger, TooLarge, as_object, raise_own, reported_error
from dgpo_remote.service.bounded import Network, bounded
from dgpo_remote.tokens import read_token
from dgpo_schemas.addresses import shown_address
from dgpo_schemas.service import REQUEST
from dgpo_schemas.text import clean, error_text

__all__ = ["Client"]

CONNECT = 5.0
"""Seconds to reach a server."""
MAX_ANSWER = 256 * 2**20
"""Bytes of an answer."""
MAX_JSON = 8 * 2**20
"""Bytes of an answer in JSON."""
MAX_ERROR = 2**16
"""Bytes that are read of an answer that tells of an error."""
MAX_PAUSE = 30.0
"""Seconds that a server may ask us to wait."""
KINDS = ("request", "token", "origin", "size", "type", "busy", "timeout", "reward", "memory", "user", "plugin")
"""Errors of a service that are understood here; another one is a failure of that server."""


class Client:
    """A pool of connections that carries the token. May be used from any thread."""

    def __init__(
        self,
        where: str,
        token_variable: str | None,
        connections: int,
        urls: Sequence[str],
        look: Callable[[], None] | None = None,
    ) -> None:
        """urls: all that will be asked; look: called now and then while an answer is waited for.

        Raises UserError if the token's variable is not set or holds no token, and if the environment names a proxy for
        a server that cannot be used.
        """
        self._token_variable = token_variable
        self._look = look
        headers = {"Accept-Encoding": "identity"}
        if (token := read_token(token_variable, f"{where}.service.")) is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._proxies = {_origin(url): _proxy(url, where) for url in urls}
        if any(httpx.URL(url).scheme == "https" for url in urls):
            certificates(True)  # that they cannot be read is told now
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.Client(
            headers=headers,
            transport=cast(httpx.BaseTransport, Routed(httpx, limits=limits, network=Network())),
            trust_env=False,  # what the environment says of proxies crashes httpx where it does not understand it
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
        """The body of an answer whose status is 200. Raises Down, Busy, Refused, RewardRaised and OutOfMemory.

        Servers repeat the request's number: what they or a proxy send late, or twice, on a connection that is used
        again is no answer to it. HTTP's own order has to do for a server that names no number. most: bytes of an
        answer.
        """
        limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
        number = uuid.uuid4().hex
        sent = {**(headers or {}), REQUEST: number}
        address, proxy = httpx.URL(url), self._proxies.get(_origin(url))
        via = "" if proxy is None else f" through {proxy}"
        # A name and password are not part of the address that is asked for: libraries log addresses.
        account = httpx.BasicAuth(address.username, address.password) if address.userinfo else None
        address = address.copy_with(userinfo=b"")
        try:
            with (
                bounded(timeout, self._look),
                self._client.stream(
                    method, address, content=content, headers=sent, timeout=limits, auth=account
                ) as response,
            ):
                if response.headers.get(REQUEST, number) != number:  # unread, so that the connection is given up
                    raise Nonsense(f"answered another request than this one{via}")
                body = _read(response, most, timeout)
        except httpx.ConnectTimeout as error:
            raise Down(f"no connection within {min(CONNECT, timeout):g} s{via}") from error
        except httpx.TimeoutException as error:
            raise Down(f"no whole answer within {timeout:g} s ({type(error).__name__}){via}") from error
        except httpx.ConnectError as error:
            if isinstance(error.__cause__, httpx.ProxyError) and str(error.__cause__).startswith("407"):
                raise Refused(_wants_password(proxy)) from error
            if proxy is not None:  # which it names itself
                raise Down(clean(str(error))) from error
            raise Down(error_text(error)) from error
        # RuntimeError: the client was closed. ValueError: a host's name or a header that cannot be encoded or read.
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, RuntimeError, ValueError, OSError) as error:
            raise Down(f"{error_text(error)}{via}") from error
        self._judge(response, body, proxy)
        return body

    def ask_json(self, method: str, url: str, *, timeout: float, content: bytes | None = None) -> dict[str, Any]:
        """The same for JSON, which must be an object."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        body = self.ask(method, url, timeout=timeout, content=content, headers=headers, most=MAX_JSON)
        answer = as_object(body)
        if answer is None:
            raise Nonsense(f"answered with something that is no JSON object: {_excerpt(body)}{self._via(url)}")
        return answer

    def _via(self, url: str) -> str:
        proxy = self._proxies.get(_origin(url))
        return "" if proxy is None else f" through {proxy}"

    def _judge(self, response: httpx.Response, body: bytes, proxy: Proxy | None) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        via = "" if proxy is None else f" through {proxy}"
        if status == 200:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise Nonsense(f"answered in the encoding {clean(encoding, 40)}, unasked{via}")
            return
        reported = reported_error(body)
        kind, words = reported or ("", "")
        message = words or f"status {status}: {_excerpt(body)}{via}"
        if status == 407:
            raise Refused(_wants_password(proxy))
        if 300 <= status < 400:
            to = shown_address(response.headers.get("Location", "nowhere"))
            raise Nonsense(f"answered with a redirect (status {status}) to {to}, which is not followed{via}")
        if status in (429, 503):
            raise Busy(message, _pause(response.headers.get("Retry-After")))
        if reported is not None and kind not in KINDS:  # it failed in a way that this version does not know of
            raise Down(message)
        if status in (401, 403):
            raise Refused(message if kind == "origin" else f"{message} ({self._token_hint()})")
        if status == 413:
            raise TooLarge(message)
        if 400 <= status < 500 and status != 408:
            raise Refused(message) if reported else Stranger(message)
        raise_own(kind, message)
        raise Down(message)

    def _token_hint(self) -> str:
        if self._token_variable is None:
            return "name the environment variable that holds its token in service.token_variable"
        return f"the token in the environment variable {self._token_variable} is not the server's"

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


def _wants_password(proxy: Proxy | None) -> str:
    if proxy is None:
        return "status 407: something on the way that is not named here wants a proxy's password"
    return (
        f"{proxy} wants a name and a password (status 407); write them into {proxy.variable}: http://NAME:PASSWORD@..."
    )


def _read(response: httpx.Response, most: int, timeout: float) -> bytes:
    """The body as it was sent, bounded in size; of an error as much as is worth showing."""
    cut = response.status_code != 200
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if cut and len(body) > MAX_ERROR:
            break
        if len(body) > most:
            raise Down(f"the answer is longer than {most >> 20} MiB")
    return bytes(body)


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return f"'{clean(text, 80)}'" if text else "nothing"


def _pause(value: str | None) -> float:
    """Seconds of a Retry-After header, which is a number or a date."""
    try:
        seconds = float(value or 1)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = 1.0
    return min(MAX_PAUSE, seconds) if seconds > 0 else 0.1

"""One HTTP exchange with a reward service, bounded in time and size, and what its answer means."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from dgpo_core.errors import UserError
from dgpo_core.placement.remote import OutOfMemory, RewardLost, RewardRaised
from dgpo_schemas.service import REQUEST

__all__ = ["Busy", "Client", "Down", "Nonsense", "Refused", "Stranger", "shown"]

CONNECT = 5.0
"""Seconds to reach a server."""
MAX_ANSWER = 256 * 2**20
"""Bytes of an answer."""
MAX_PAUSE = 30.0
"""Seconds that a server may ask us to wait."""


class Down(Exception):
    """The server cannot be reached, broke, or answered nonsense. Another one, or a later try, may do better."""


class Nonsense(Down):
    """The server answered, but not as a reward service does."""


class Busy(Exception):
    """The server asks to come back in `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Refused(RewardLost):
    """The server does not want this request, and would not want it again."""


class Stranger(Refused):
    """The server does not know this request, and does not say so in a reward service's words."""


class Client:
    """A pool of connections that carries the token. May be used from any thread."""

    def __init__(self, where: str, token_variable: str | None, connections: int) -> None:
        """Raises UserError if the token's variable is not set."""
        self._token_variable = token_variable
        headers = {"Accept-Encoding": "identity"}
        if token_variable is not None:
            token = os.environ.get(token_variable, "")
            if not token.strip():
                raise UserError(
                    f"{where}.service.token_variable: the environment variable {token_variable} is not set; "
                    "export it with the servers' token before the run starts"
                )
            headers["Authorization"] = f"Bearer {token.strip()}"
        direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # never through a proxy
        self._client = httpx.Client(
            headers=headers,
            mounts=direct,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def ask(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of an answer whose status is 200. Raises Down, Busy, Refused, RewardRaised and OutOfMemory.

        Servers repeat the request's number: what they or a proxy send late, or twice, on a connection that is used
        again is no answer to it. HTTP's own order has to do for a server that names no number.
        """
        deadline = time.monotonic() + timeout
        limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
        number = uuid.uuid4().hex
        sent = {**(headers or {}), REQUEST: number}
        try:
            with self._client.stream(method, url, content=content, headers=sent, timeout=limits) as response:
                if response.headers.get(REQUEST, number) != number:  # unread, so that the connection is given up
                    raise Nonsense("answered another request than this one")
                body = _read(response, deadline, timeout)
        except httpx.TimeoutException as error:
            raise Down(f"no answer within {timeout:g} s ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:  # RuntimeError: the client was closed
            raise Down(f"{type(error).__name__}: {error}") from error
        self._judge(response, body)
        return body

    def ask_json(self, method: str, url: str, *, timeout: float, data: Any = None) -> dict[str, Any]:
        """The same for JSON, which must be an object."""
        content = None if data is None else json.dumps(data).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        body = self.ask(method, url, timeout=timeout, content=content, headers=headers)
        answer = _as_object(body)
        if answer is None:
            raise Nonsense(f"answered with something that is no JSON object: {_excerpt(body)}")
        return answer

    def _judge(self, response: httpx.Response, body: bytes) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        if status == 200:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise Nonsense(f"answered in the encoding {response.headers['Content-Encoding']}, unasked")
            return
        error = (_as_object(body) or {}).get("error")
        told = error if isinstance(error, dict) else {}
        message = str(told.get("message") or f"status {status}: {_excerpt(body)}")
        if status in (429, 503):
            raise Busy(message, _pause(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise Refused(f"{message} ({self._token_hint()})")
        if 400 <= status < 500 and status != 408:
            raise Refused(message) if told else Stranger(message)
        match told.get("kind"):
            case "reward" | "user" | "plugin":
                raise RewardRaised(message)
            case "memory":
                raise OutOfMemory(message)
        raise Down(message)

    def _token_hint(self) -> str:
        if self._token_variable is None:
            return "name the environment variable that holds its token in service.token_variable"
        return f"the token in the environment variable {self._token_variable} is not the server's"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _read(response: httpx.Response, deadline: float, timeout: float) -> bytes:
    """The body as it was sent, bounded: httpx's own time limit is one between two pieces."""
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ANSWER:
            raise Down(f"the answer is longer than {MAX_ANSWER >> 20} MiB")
        if time.monotonic() > deadline:
            raise Down(f"no whole answer within {timeout:g} s")
    return bytes(body)


def _as_object(body: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return repr(text[:80]) if text else "nothing"


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


def shown(url: str) -> str:
    """An address without the password that may stand in it."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(userinfo=b"")) if parsed.userinfo else url

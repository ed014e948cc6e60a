"""One HTTP request to a server: bounded in time and size, and what its status means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from dgpo_core.errors import UserError
from dgpo_judge.failures import Broken, Busy, Refused, Unreachable, hiding, retry_after, shown_body
from dgpo_schemas.addresses import shown_address
from dgpo_schemas.text import clean, error_text

__all__ = ["Transport"]

CONNECT = 10.0
"""Timeout in seconds of a connection."""
LARGEST = 8 * 2**20
"""Most bytes of a response."""
LARGEST_ERROR = 2**14
"""Bytes that are read of an error response."""
HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts that are never reached through a proxy."""


class Transport:
    """A pool of connections that sends the token. Belongs to one event loop."""

    def __init__(self, urls: Sequence[str], token: str | None, connections: int, where: str) -> None:
        """Raises UserError if the environment names a proxy or certificates that cannot be used."""
        self.hide = hiding(token)
        """Replaces the token in a text."""
        headers = {"Accept-Encoding": "identity", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        here = {host for url in urls if (host := urlsplit(url).hostname) in HERE}
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                mounts={f"all://{f'[{host}]' if ':' in host else host}": None for host in here},
                follow_redirects=False,
                verify=any(url.startswith("https:") for url in urls),  # reading certificates takes a while
            )
        except (ValueError, OSError, ImportError, httpx.InvalidURL) as error:
            raise UserError(f"{where}: the proxy or certificate variables of the environment are invalid: "
                            f"{error_text(error, 300)}") from error  # fmt: skip

    async def send(self, method: str, url: str, content: bytes | None, timeout: float) -> bytes:
        """Send a request and return the body of a response with status 200.

        timeout: total seconds. The body may repeat the token: `hide` what of it is shown or kept. Raises Unreachable,
        Broken, Busy and Refused.
        """
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                request = self._client.stream(
                    method, url, content=content, headers=headers, timeout=httpx.Timeout(None, connect=CONNECT)
                )
                async with request as response:
                    body = await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(self.hide(error_text(error, 300))) from error
        except TimeoutError as error:
            raise Broken(f"no complete response within {timeout:g} s") from error
        # RuntimeError: the client was closed; ValueError: a header cannot be decoded.
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, RuntimeError, ValueError, OSError) as error:
            raise Broken(self.hide(error_text(error, 300))) from error
        self._check(response, body)
        return body

    def _check(self, response: httpx.Response, body: bytes) -> None:
        """Raise the error that the response means, unless its status is 200."""
        status = response.status_code
        if status == 200:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise Refused(f"the response has the unrequested Content-Encoding {clean(encoding, 40)}")
            if len(body) > LARGEST:
                raise Refused(f"the response is larger than {LARGEST >> 20} MiB")
            return
        message = f"status {status}: {shown_body(body, self.hide)}"
        pause = retry_after(response.headers.get("Retry-After"))
        if status == 429 or (status == 503 and pause is not None):
            raise Busy(message, pause)
        if status == 408 or status >= 500:
            raise Broken(message)
        if 300 <= status < 400:
            to = self.hide(shown_address(response.headers.get("Location", "nowhere")))
            raise Refused(f"status {status}: a redirect to {to}, which is not followed")
        raise Refused(message)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _read(response: httpx.Response) -> bytes:
    """Read the body as it was sent, and stop where it is too large; of an error only the beginning."""
    most = LARGEST if response.status_code == 200 else LARGEST_ERROR
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > most:
            break
    return bytes(body)

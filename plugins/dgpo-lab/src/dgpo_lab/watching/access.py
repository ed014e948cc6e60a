"""Who may see the page: the Host header against DNS rebinding, and a token where other machines can connect."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from dgpo_core.errors import UserError
from dgpo_schemas.serve import is_loopback

__all__ = ["Access", "make_access"]


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of a server.

    local: it listens on this machine only. names: further host names by which it may be called, in lower case. token:
    what a browser must present once, as `?token=`, or a program as a bearer token; None if everyone may look.
    """

    local: bool
    names: frozenset[str]
    token: str | None

    def is_ours(self, host: str) -> bool:
        """Return whether a Host header names this server.

        A page of another site whose name was made to lead here sends its own name, which is refused. An address cannot
        be made to lead here, so a server of the network accepts every address.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names or is_loopback(name):
            return True
        if self.local:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def opens(self, presented: str) -> bool:
        """Return whether this is the token. Takes the same time for every wrong one."""
        return self.token is None or hmac.compare_digest(_digest(presented), _digest(self.token))

    def admits(self, cookies: str, authorization: str, cookie: str) -> bool:
        """Return whether a request with these headers may read; `cookie` is the name of the cookie with the token."""
        if self.token is None:
            return True
        scheme, _, bearer = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.opens(bearer.strip()):
            return True
        try:
            found = SimpleCookie(cookies).get(cookie)
        except CookieError:
            return False
        return found is not None and self.opens(found.value)


def make_access(host: str, names: Sequence[str], variable: str | None) -> Access:
    """Return the rules for a server that listens on `host`; makes a token if others can connect and none is given.

    variable: the environment variable with the token. Raises UserError if it is not set, or is no token.
    """
    local = is_loopback(host)
    token = None if variable is None else _given(variable)
    if token is None and not local:
        token = secrets.token_urlsafe(24)
    known = {socket.gethostname(), host, *names}
    return Access(local, frozenset(name.lower().strip("[]") for name in known if name), token)


def _given(variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            f"--token-variable: the environment variable {variable} is not set; export it with a long secret"
        )
    if len(token) < 16 or not all(c.isascii() and (c.isalnum() or c in "-_.~") for c in token):
        raise UserError(
            f"--token-variable: the environment variable {variable} is not a valid token: use at least 16 ASCII "
            "letters, digits, '-', '_', '.' or '~'"
        )
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

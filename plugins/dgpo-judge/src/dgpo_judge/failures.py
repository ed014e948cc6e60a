"""What can go wrong with a request, by what helps against it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from dgpo_core.errors import UserError
from dgpo_schemas.text import clean

__all__ = ["Broken", "Busy", "Refused", "Unreachable", "hiding", "retry_after", "shown_body", "token_of"]

LONGEST_PAUSE = 600.0
"""Longest wait in seconds that a Retry-After header can ask for."""
EXCERPT = 300
"""Most characters of an error response in a message."""


class Unreachable(Exception):
    """No connection: the server is down or restarts. Wait for it."""


class Broken(Exception):
    """The connection broke, the server failed, or sent something else than an answer. Try again, a few times."""


class Busy(Exception):
    """The server asks to pause for `seconds`; None if it does not say for how long."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Refused(Exception):
    """The server rejects the request, and would do so again."""


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date; None if it is absent or invalid."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(LONGEST_PAUSE, max(0.0, seconds)) if seconds == seconds else None


def token_of(variable: str | None, where: str) -> str | None:
    """Read the token from an environment variable; it never appears in messages.

    Raises UserError if the variable is not set or cannot be sent in a header.
    """
    if variable is None:
        return None
    token, named = os.environ.get(variable, "").strip(), f"{where}: token_variable: the environment variable {variable}"
    if not token:
        raise UserError(f"{named} is not set; export it with the servers' token (API key) before the run starts")
    if not all("!" <= letter <= "~" for letter in token):
        raise UserError(f"{named} is not a token: it contains a space or a character that HTTP headers do not allow")
    return token


def hiding(token: str | None) -> Callable[[str], str]:
    """Return a function that replaces the token in texts, also where it is escaped as JSON or percent-encoded.

    For texts that people see, and not for what is parsed: a token may be a word such as `token` or `1`.
    """
    if token is None:
        return str
    pattern = re.compile("".join(map(_written, token)))
    return lambda text: pattern.sub("(token)", text)


def _written(letter: str) -> str:
    """Return a pattern for how a character of a token may be written: JSON within JSON has several backslashes."""
    code = f"(?i:{ord(letter):02x})"
    return rf"(?:\\*{re.escape(letter)}|\\+u00{code}|%{code})"


def shown_body(body: bytes, hide: Callable[[str], str]) -> str:
    """Return the beginning of an error response for a message, without the token if the server repeats it."""
    text = " ".join(hide(body.decode("utf-8", "replace")).split())  # hidden before it is cut
    return f"'{clean(text, EXCERPT)}'" if text else "an empty response"

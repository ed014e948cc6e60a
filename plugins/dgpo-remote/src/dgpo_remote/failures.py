"""Failures of a request to a remote reward, and how error responses are interpreted."""

from __future__ import annotations

import json
from typing import Any

from dgpo_core.errors import DgpoError
from dgpo_core.training.memory import OutOfMemory
from dgpo_schemas.text import clean

__all__ = [
    "Busy",
    "Down",
    "InvalidResponse",
    "NotAService",
    "Refused",
    "RewardLost",
    "RewardRaised",
    "TooLarge",
    "as_object",
    "raise_reward_error",
    "reported_error",
]


class RewardLost(DgpoError):
    """No worker or server could score a batch, after all retries."""


class RewardRaised(DgpoError):
    """The remote reward itself failed, with this message. A retry would not help."""


class Down(Exception):
    """A worker or server is unreachable, crashed, or sent an invalid response. Another one, or a retry, may succeed."""


class InvalidResponse(Down):
    """The response does not follow the protocol of a reward service."""


class Busy(Exception):
    """The server asks the client to retry after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Refused(RewardLost):
    """The server rejects this request. A retry would be rejected too."""


class NotAService(Refused):
    """The server rejects this request, but not with an error response of a reward service."""


class TooLarge(Refused):
    """The request is too large for the server. It may accept a smaller one."""


def as_object(body: bytes) -> dict[str, Any] | None:
    """Parse a JSON object. Returns None for anything else."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def reported_error(body: bytes) -> tuple[str, str] | None:
    """Return (kind, message) of an `ErrorAnswer`, both safe to print, or None if the body is not one.

    The message is empty if the response has none.
    """
    error = (as_object(body) or {}).get("error")
    if not isinstance(error, dict) or not error:
        return None
    message = error.get("message")
    shown = clean(message, lines=True) if isinstance(message, str) and message.strip() else ""
    return clean(str(error.get("kind")), 40), shown


def raise_reward_error(kind: str, message: str) -> None:
    """Raise RewardRaised or OutOfMemory for an error of the remote reward. Does nothing for other kinds."""
    if kind in ("reward", "user", "plugin"):
        raise RewardRaised(message)
    if kind == "memory":
        raise OutOfMemory(message)

"""What may go wrong with a request to a reward elsewhere, and what the other side's own words for it mean."""

from __future__ import annotations

import json
from typing import Any

from dgpo_core.errors import DgpoError
from dgpo_core.training.memory import OutOfMemory
from dgpo_schemas.text import clean

__all__ = [
    "Busy",
    "Down",
    "Nonsense",
    "Refused",
    "RewardLost",
    "RewardRaised",
    "Stranger",
    "TooLarge",
    "as_object",
    "raise_own",
    "reported_error",
]


class RewardLost(DgpoError):
    """The place where a reward runs could not score a batch, however often it was tried."""


class RewardRaised(DgpoError):
    """The reward itself failed, elsewhere; the message is its own. Trying again would not help."""


class Down(Exception):
    """A place cannot be reached, broke, ended, or answered nonsense. Another one, or a later try, may do better."""


class Nonsense(Down):
    """It answered, but not as a reward service does."""


class Busy(Exception):
    """It asks to come back in `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Refused(RewardLost):
    """It does not want this request, and would not want it again."""


class Stranger(Refused):
    """It does not know this request, and does not say so in a reward service's words."""


class TooLarge(Refused):
    """It does not take so much at once; it may take a part of it."""


def as_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def reported_error(body: bytes) -> tuple[str, str] | None:
    """(kind, message) of an `ErrorAnswer`, both fit to be shown, the message empty if there is none; None if it is none
    at all, whatever the other side has written there."""
    error = (as_object(body) or {}).get("error")
    if not isinstance(error, dict) or not error:
        return None
    said = error.get("message")
    words = clean(said, lines=True) if isinstance(said, str) and said.strip() else ""
    return clean(str(error.get("kind")), 40), words


def raise_own(kind: str, message: str) -> None:
    """Raise what the reward itself has met there; nothing for other kinds of errors."""
    if kind in ("reward", "user", "plugin"):
        raise RewardRaised(message)
    if kind == "memory":
        raise OutOfMemory(message)

"""The secret that callers of a service show."""

from __future__ import annotations

import os

from dgpo_core.errors import UserError

__all__ = ["read_token"]


def read_token(variable: str | None, where: str = "") -> str | None:
    """What a variable of the environment holds; it is never shown. where: before `token_variable` in messages. Raises
    UserError if it is not set, or holds what can be no token."""
    if variable is None:
        return None
    token, named = os.environ.get(variable, "").strip(), f"{where}token_variable: the environment variable {variable}"
    if not token:
        secret = "the servers' token before the run starts" if where else "a long secret"
        raise UserError(f"{named} is not set; export it with {secret}")
    if not all("!" <= letter <= "~" for letter in token):
        raise UserError(
            f"{named} holds no token: there is a space in it, or a letter that no header of a request can carry; use "
            "ASCII letters, digits and punctuation"
        )
    return token

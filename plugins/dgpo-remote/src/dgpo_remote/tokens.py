"""The bearer token of a service."""

from __future__ import annotations

import os

from dgpo_core.errors import UserError

__all__ = ["read_token"]


def read_token(variable: str | None, where: str = "") -> str | None:
    """Read the token from an environment variable. It never appears in messages.

    where: prefix of `token_variable` in messages. Raises UserError if the variable is not set or not a valid token.
    """
    if variable is None:
        return None
    token, named = os.environ.get(variable, "").strip(), f"{where}token_variable: the environment variable {variable}"
    if not token:
        secret = "the servers' token before the run starts" if where else "a long secret"
        raise UserError(f"{named} is not set; export it with {secret}")
    if not all("!" <= letter <= "~" for letter in token):
        raise UserError(
            f"{named} is not a valid token: it contains a space or a character that is not allowed in an HTTP header; "
            "use ASCII letters, digits and punctuation"
        )
    return token

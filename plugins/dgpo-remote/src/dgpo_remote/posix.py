"""Servers and workers need POSIX: process groups, inherited sockets and resource limits."""

from __future__ import annotations

import os

from dgpo_core.errors import UserError

__all__ = ["require_posix"]


def require_posix(what: str) -> None:
    """Raise UserError on Windows. what: what needs it, at the beginning of the message."""
    if os.name != "posix":
        raise UserError(f"{what}: works on Linux and macOS only; on Windows, use WSL or a service on another machine")

"""The listening socket: callers that have gone before they are let in cost next to nothing."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["Listening"]

GONE_AT_ONCE = 64
"""Callers that have gone which are left out before the event loop goes on."""


class Listening(socket.socket):
    """Accepts connections that are still there. A transport, a parser and a task for each of those that came and went
    would make others wait, or be turned away because the queue is full."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The next one. Raises BlockingIOError if there is none now."""
        for _ in range(GONE_AT_ONCE):
            made, address = super().accept()
            if not made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return made, address
            made.close()
        raise BlockingIOError("callers that have gone only; the socket stays readable if there are more")

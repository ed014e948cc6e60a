"""The listening socket, which cheaply drops connections that were closed before they are accepted."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["Listening"]

GONE_AT_ONCE = 64
"""Most closed connections that are dropped before control returns to the event loop."""


class Listening(socket.socket):
    """Accepts only connections that are still open.

    Creating a transport, a parser and a task for each closed one would delay other clients, or overflow the backlog.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next open connection. Raises BlockingIOError if there is none now."""
        for _ in range(GONE_AT_ONCE):
            connection, address = super().accept()
            if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return connection, address
            connection.close()
        raise BlockingIOError("only closed connections; the socket stays readable if there are more")

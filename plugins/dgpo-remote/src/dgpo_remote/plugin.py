"""What the plugin brings."""

from __future__ import annotations

from collections.abc import Mapping

from dgpo_core.hookspecs import hookimpl

__all__ = ["dgpo_places"]


@hookimpl
def dgpo_places() -> Mapping[str, str]:
    """A process of its own, and a server."""
    return {
        "worker": "dgpo_remote.worker.workers:connect",
        "service": "dgpo_remote.service.service:connect",
    }

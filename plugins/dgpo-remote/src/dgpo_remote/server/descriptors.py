"""File descriptors: there must be one for every connection, and some for everything else."""

from __future__ import annotations

import logging
import resource

__all__ = ["ACCEPTED", "connections_that_fit"]

log = logging.getLogger(__name__)

ACCEPTED = 64
"""Connections that are accepted in one round of the event loop: as many may be open beyond the bound, for a moment."""
OTHERS = 256
"""Descriptors for models, workers, libraries and files."""


def connections_that_fit(most: int) -> int:
    """So many connections, or as many as the process may have descriptors for: its soft limit is raised if it can be,
    else a warning says how many there are."""
    needed = most + ACCEPTED + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return most
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):  # macOS has bounds of which it does not tell
            pass
    if soft >= needed:
        return most
    fit = max(8, min(most, soft - ACCEPTED - OTHERS, soft // 2) if soft > ACCEPTED + OTHERS else soft // 4)
    log.warning(
        "connections.max is %d instead of %d: this process may open %d files only (ulimit -n; %d are needed)",
        fit, most, soft, needed,
    )  # fmt: skip
    return min(fit, most)

"""File descriptor limits: each connection needs one, and other files need some."""

from __future__ import annotations

import logging
import resource

__all__ = ["ACCEPTED", "connections_that_fit"]

log = logging.getLogger(__name__)

ACCEPTED = 64
"""Connections accepted in one iteration of the event loop: so many may briefly exceed the limit."""
OTHERS = 256
"""Descriptors reserved for models, workers, libraries and files."""


def connections_that_fit(most: int) -> int:
    """Return `most`, or fewer connections if the process may not open enough file descriptors.

    Raises the soft limit if possible, and otherwise logs a warning with the reduced number.
    """
    needed = most + ACCEPTED + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return most
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):  # macOS has undocumented limits
            pass
    if soft >= needed:
        return most
    fit = max(8, min(most, soft - ACCEPTED - OTHERS, soft // 2) if soft > ACCEPTED + OTHERS else soft // 4)
    log.warning(
        "connections.max is reduced from %d to %d: this process may open only %d files (ulimit -n; %d are needed)",
        most, fit, soft, needed,
    )  # fmt: skip
    return min(fit, most)

"""Directories of caches on disk, which belong to the user and not to a run."""

from __future__ import annotations

import os
from pathlib import Path

from dgpo_core.errors import UserError

__all__ = ["cache_directory"]


def cache_directory(name: str, *, otherwise: str) -> Path:
    """Return `name` in $DGPO_CACHE, or in `dgpo` in $XDG_CACHE_HOME or ~/.cache.

    Raises UserError without a home directory. otherwise: the setting and what to do then, for its message.
    """
    if own := os.environ.get("DGPO_CACHE"):
        return Path(own).absolute() / name
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "dgpo" / name
    try:
        return Path.home() / ".cache" / "dgpo" / name
    except RuntimeError as error:
        key, _, remedy = otherwise.partition(": ")
        raise UserError(f"{key}: there is no home directory; {remedy}") from error

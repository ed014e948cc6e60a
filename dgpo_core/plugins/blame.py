"""Attribute exceptions to plugins."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from dgpo_core.system.operators import refused_operator
from dgpo_schemas.text import error_text

__all__ = ["OURS", "blamed"]

OURS = ("dgpo_core", "dgpo_cli", "dgpo_schemas")


def blamed(error: BaseException, owners: Mapping[str, str]) -> str | None:
    """Describe an exception raised by a plugin, with its distribution and location; None if no plugin raised it.

    An operator that torch refuses is the fault of no plugin, and has a message of its own. Otherwise the innermost
    frame that belongs to dgpo or to a plugin decides. owners: top-level package to distribution and version.
    """
    if (refused := refused_operator(error)) is not None:
        return refused
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in OURS:
            return None
        if package in owners:
            where = f"{frame.f_code.co_filename}:{line}"
            return f"plugin {owners[package]} failed with {error_text(error)} (at {where})"
    return None

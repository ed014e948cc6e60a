"""Call the observers of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pluggy

from dgpo_core.plugins.isolation import ctrl_c, no_exit
from dgpo_schemas.text import error_text

__all__ = ["notify"]

log = logging.getLogger(__name__)


def notify(manager: pluggy.PluginManager, muted: set[str], hook: str, keywords: Mapping[str, Any]) -> None:
    """Call every observer of a life-cycle hook. An observer that raises is logged and disabled."""
    # pluggy stores implementations in reverse call order.
    for implementation in reversed(getattr(manager.hook, hook).get_hookimpls()):
        if implementation.plugin_name in muted:
            continue
        arguments = {name: keywords[name] for name in implementation.argnames}
        with ctrl_c() as pressed, no_exit():
            try:
                implementation.function(**arguments)
            except BaseException as error:
                if pressed():
                    raise
                muted.add(implementation.plugin_name)
                log.warning(
                    "observer %s failed in %s and is disabled: %s",
                    implementation.plugin_name, hook, error_text(error),
                )  # fmt: skip

"""The declarations of dgpo-kit. This module must not import heavy packages."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Command

__all__ = ["dgpo_commands"]

dgpo_contract = 3


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """Return the commands for plugin authors."""
    return [
        Command(
            "plugins check", "Check components against their contract.", "dgpo_kit.commands.check:check_plugins", 30
        ),
        Command("plugins new", "Create a new plugin from a template.", "dgpo_kit.commands.new:new", 40),
        Command("plugins tiny", "Write a tiny random checkpoint for short runs.", "dgpo_kit.commands.tiny:tiny", 50),
    ]

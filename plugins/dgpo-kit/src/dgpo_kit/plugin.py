"""What dgpo-kit declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Command

__all__ = ["dgpo_commands"]

dgpo_contract = 3


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """For authors of plugins."""
    return [
        Command(
            "plugins check", "Check that components keep their contract.", "dgpo_kit.commands.check:check_plugins", 30
        ),
        Command("plugins new", "Write a new plugin, which works already.", "dgpo_kit.commands.new:new", 40),
    ]

"""What the plugin brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dgpo_core.hookspecs import Command, hookimpl

__all__ = ["dgpo_commands", "dgpo_reward_transports"]


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """A reward for others."""
    summary = "Serve a reward over HTTP, to training runs and to curl."
    return [Command("serve", summary, "dgpo_remote.commands.serve:serve", 90)]


@hookimpl
def dgpo_reward_transports() -> Mapping[str, str]:
    """A process of its own, and a server."""
    return {
        "worker": "dgpo_remote.worker.workers:connect",
        "service": "dgpo_remote.service.service:connect",
    }

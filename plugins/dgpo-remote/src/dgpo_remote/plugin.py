"""Hook implementations of the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dgpo_core.hookspecs import Command, hookimpl

__all__ = ["dgpo_commands", "dgpo_reward_transports"]


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """Provide `dgpo serve`."""
    summary = "Serve a reward over HTTP, for training runs and for curl."
    return [Command("serve", summary, "dgpo_remote.commands.serve:serve", 90)]


@hookimpl
def dgpo_reward_transports() -> Mapping[str, str]:
    """Provide the transports `worker` and `service`, and `ranks` (`run.reward_ranks`)."""
    return {
        "worker": "dgpo_remote.worker.workers:connect",
        "service": "dgpo_remote.service.service:connect",
        "ranks": "dgpo_remote.ranks:connect",
    }

"""Where a reward runs, as its block says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dgpo_core.errors import PluginError, UserError
from dgpo_core.system.hub import prepare_hub

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["Connect", "place"]


class Connect(Protocol):
    """What a plugin brings for a place (`dgpo_reward_transports`): it connects a reward to where it runs."""

    def __call__(self, block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
        """The reward of a block, ready to score; its `elsewhere` is True.

        device: what the run computes on; where: the block's place in its file, for messages. Its scores must be the
        bits of those in this process. Raises UserError for what keeps it from being ready.
        """
        ...


def place(block: RewardBlock, registry: Registry, *, device: torch.device, where: str | None = None) -> AnyReward:
    """The reward that a block names, ready to score: here, in its `worker`, or behind its `service`.

    `where` is the block's place in its file, such as `rewards.0`, for messages. Whoever asked for the reward closes it.
    Raises UserError for options that the reward refuses, an interpreter that cannot run it, a service that is not
    there or serves something else, and a place whose plugin is not installed.
    """
    where = where or f"reward {block.label}"
    for key in ("worker", "service"):
        if getattr(block, key) is not None:
            try:
                connect: Connect = registry.place(key)
            except PluginError as error:
                raise UserError(f"{where}.{key}: {error}") from error
            return connect(block, device=device, where=where)
    prepare_hub()
    made: AnyReward = registry.create("reward", block, device=device)
    return made

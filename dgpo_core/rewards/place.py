"""Where a reward runs, as its block says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["place"]


def place(block: RewardBlock, registry: Registry, *, device: torch.device, where: str | None = None) -> AnyReward:
    """The reward that a block names, ready to score: here, in its `worker`, or behind its `service`.

    `where` is the block's place in its file, such as `rewards.0`, for messages. Whoever asked for the reward closes it.
    Raises UserError for options that the reward refuses, an interpreter that cannot run it, and a service that is not
    there or serves something else.
    """
    where = where or f"reward {block.label}"
    if block.worker is not None:
        from dgpo_core.rewards.workers import WorkerReward

        return WorkerReward(block, block.worker, device=device, where=where).face
    if block.service is not None:
        from dgpo_core.rewards.service import ServiceReward

        return ServiceReward(block, block.service, device=device, where=where).face
    from dgpo_core.rewards.hub import prepare_hub

    prepare_hub()
    made: AnyReward = registry.create("reward", block, device=device)
    return made

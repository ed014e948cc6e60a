"""Create a reward in the process that its section of the run file selects."""

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
    """A transport: connects to a reward that runs outside this process (`dgpo_reward_transports`)."""

    def __call__(self, block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
        """Return the reward of a section, ready to score, with `is_remote` set to True.

        device: device of the run; where: key path of the section, for messages. Scores must be bitwise identical to
        those computed in this process. Raises UserError if the reward cannot be made ready.
        """
        ...


def place(block: RewardBlock, registry: Registry, *, device: torch.device, where: str | None = None) -> AnyReward:
    """Create the reward of a section, ready to score: in this process, in its `worker`, or behind its `service`.

    where: key path of the section, such as `rewards.0`, for messages. The caller closes the reward. Raises UserError if
    the reward rejects its options, the interpreter cannot run it, the service is unreachable or serves another reward,
    or the plugin of the transport is not installed.
    """
    where = where or f"reward {block.label}"
    for key in ("worker", "service"):
        if getattr(block, key) is not None:
            try:
                connect: Connect = registry.transport(key)
            except PluginError as error:
                raise UserError(f"{where}.{key}: {error}") from error
            return connect(block, device=device, where=where)
    prepare_hub()
    reward: AnyReward = registry.create("reward", block, device=device)
    return reward

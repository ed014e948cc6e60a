"""Decoded media that wait on the device for their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.training.batch_sizes import drawn_at_once
from dgpo_lab.planning.shapes import CUDA

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig

__all__ = ["Waiting"]


class Waiting:
    """The memory of the media that a rank has decoded and that a reward on its device has not scored.

    For each reward, `scoring.in_flight` micro-batches (groups, if it compares) are queued besides those being scored,
    and the members of one incomplete group wait for the others. Rewards in workers and services have copies in host
    memory. The concurrency of a reward is that of its class, since its options may need files that are not here.
    """

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self.most = 0
        members = max(members for members, _ in config.rollout.rounds)
        """Largest number of samples."""
        self._held: Tensor | None = None
        incomplete = 0
        for block in config.rewards:
            if block.worker is None and block.service is None:
                kind = _implementation(block.use, registry)
                compares = issubclass(kind, GroupReward)
                each = members if compares else drawn_at_once(config, CUDA)
                self.most = max(self.most, (config.scoring.in_flight + kind.concurrency) * each)
                incomplete = max(incomplete, members if compares else 0)
        self.most += incomplete

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return 0 if self._held is None else self._held.nbytes

    def add(self, media: Tensor) -> None:
        """Hold the memory of a decoded micro-batch [B, ...], in place of the oldest ones beyond the most."""
        each = media.nbytes // len(media)
        size = min(self.nbytes + media.nbytes, self.most * each)
        if size > self.nbytes:
            self._held = None
            self._held = torch.empty(size, dtype=torch.uint8, device=media.device)


def _implementation(use: str, registry: Registry) -> type[AnyReward]:
    """Return the class of a reward; if its libraries are not installed here, the contract of most rewards."""
    try:
        kind: type[AnyReward] = registry.implementation(registry.find("reward", use))
    except UserError:
        return RewardModel
    return kind

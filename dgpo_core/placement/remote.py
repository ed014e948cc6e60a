"""What workers and services have in common: failures, and the reward's face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import DgpoError

if TYPE_CHECKING:
    from dgpo_schemas.service import RewardDescription

__all__ = ["RemoteReward", "RewardLost", "RewardRaised"]


class RewardLost(DgpoError):
    """The place where a reward runs could not score a batch, however often it was tried."""


class RewardRaised(DgpoError):
    """The reward itself failed, elsewhere; the message is its own. Trying again would not help."""


class RemoteReward(RewardModel):
    """A reward that runs elsewhere and has told what it is like."""

    elsewhere = True

    def _adopt(self, description: RewardDescription, concurrency: int) -> None:
        """Take on its range, what media it takes, and how evaluation splits its scores."""
        low, high = description.range
        self.range = (float("-inf") if low is None else low, float("inf") if high is None else high)  # type: ignore[misc]
        self.media = frozenset(description.media)  # type: ignore[misc]
        self.group_by = description.group_by  # type: ignore[misc]
        self.concurrency = concurrency

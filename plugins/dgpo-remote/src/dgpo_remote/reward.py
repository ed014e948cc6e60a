"""What workers and services have in common: failures, and the reward's face."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.errors import DgpoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dgpo_core.types import Example, Prompt, SampleKey, Scores
    from dgpo_schemas.service import RewardDescription

__all__ = ["RemoteGroupReward", "RemoteReward", "RewardLost", "RewardRaised"]


class RewardLost(DgpoError):
    """The place where a reward runs could not score a batch, however often it was tried."""


class RewardRaised(DgpoError):
    """The reward itself failed, elsewhere; the message is its own. Trying again would not help."""


class RemoteReward(RewardModel):
    """A reward that runs elsewhere and has told what it is like."""

    elsewhere = True
    compares = False

    @abstractmethod
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """As `contracts.GroupReward`, where the reward compares."""

    @property
    def face(self) -> AnyReward:
        """The reward by the contract that it keeps there."""
        return RemoteGroupReward(self) if self.compares else self

    def _adopt(self, description: RewardDescription, concurrency: int) -> None:
        """Take on its range, what media it takes, and how evaluation splits its scores."""
        low, high = description.range
        self.range = (float("-inf") if low is None else low, float("inf") if high is None else high)  # type: ignore[misc]
        self.media = frozenset(description.media)  # type: ignore[misc]
        self.group_by = description.group_by  # type: ignore[misc]
        self.compares = description.compares == "group"
        self.concurrency = concurrency


class RemoteGroupReward(GroupReward):
    """One that compares."""

    elsewhere = True

    def __init__(self, remote: RemoteReward) -> None:
        super().__init__(remote.options, device=remote.device)
        self.remote = remote
        self.range = remote.range  # type: ignore[misc]
        self.media = remote.media  # type: ignore[misc]
        self.group_by = remote.group_by  # type: ignore[misc]
        self.concurrency = remote.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them."""
        self.remote.check_prompts(prompts)

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """The group in one request."""
        return self.remote.score_group(media, prompt, keys)

    def examples(self) -> Sequence[Example]:
        """The reward's own."""
        return self.remote.examples()

    def close(self) -> None:
        """End what runs there for it."""
        self.remote.close()

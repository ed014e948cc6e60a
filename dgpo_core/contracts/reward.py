"""The contracts of reward models: those that score each sample by itself, and those that compare a group's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dgpo_core.types import Example, Prompt, SampleKey, Scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["AnyReward", "GroupReward", "RewardBase", "RewardModel"]


class RewardBase(ABC):
    """What both kinds of reward have in common; plugins derive from one of the two.

    Called from a thread of the run while the next samples are drawn; from several at once only where `concurrency`
    allows it. Leaves the process as it was: working directory, torch's defaults and switches, signals."""

    media: ClassVar[frozenset[Literal["image", "video"]]] = frozenset({"image"})
    range: ClassVar[tuple[float, float]]
    """Smallest and largest value it can give; infinities where there is no bound."""
    group_by: ClassVar[str | None] = None
    """Metadata key by which evaluation splits its table (GenEval: `tag`); the overall score is then the unweighted
    mean of the groups' means."""
    concurrency: int = 1
    """Calls that may run at the same time."""
    is_remote: ClassVar[bool] = False
    """Whether the scores are computed outside of this process: what is done there changes nothing here."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        self.options = options
        self.device = device

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - optional
        """Raise UserError, naming the prompt, if one lacks what this reward needs. Called before the run starts. Media
        are known by kind and digest; they can be read, which has been tried, but only `score` has their bytes."""

    def examples(self) -> Sequence[Example]:
        """Samples known to be good and bad, shipped or drawn: `dgpo score --self-test` and the contract suite score
        them. At least one of each, or none at all. A GroupReward is shown those of one prompt as a group."""
        return ()

    def close(self) -> None:  # noqa: B027 - optional
        """Let go of what garbage collection would not: processes, connections, pools. Called once, at the end."""


class RewardModel(RewardBase):
    """Scores media, each sample by itself."""

    @abstractmethod
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Media [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1], with the prompt of each, to one value per sample.
        A sample's value does not depend on the others in the batch. What cannot be scored is missing, never 0. May
        raise anything: the batch is then missing, or, where memory ran out, scored again in halves."""


class GroupReward(RewardBase):
    """Scores the samples of one prompt by comparing them with each other: pair-wise and list-wise judges, win rates."""

    @abstractmethod
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Media [G, 3, H, W] or [G, F, 3, H, W], float in [0, 1], of one prompt, to one value per member; G >= 2.

        The engine shows whole groups, without members whose media are not finite; groups of which fewer than two
        members are left are missing without a call. `keys` name the members: no two are alike, and a member has the
        same key however the run is split up. Members in another order have their values in that order: whatever is
        asked of a few of them only, or in some order, is chosen by the keys and not by places. What cannot be scored
        is missing, never 0. May raise anything: the group is then missing, also where memory ran out.
        """


AnyReward = RewardModel | GroupReward

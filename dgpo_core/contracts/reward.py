"""The reward contracts: models that score samples independently, and models that compare the samples of a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dgpo_core.types import Example, Prompt, SampleKey, Scores

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

__all__ = ["AnyReward", "GroupReward", "RewardBase", "RewardModel"]


class RewardBase(ABC):
    """Common base of `RewardModel` and `GroupReward`; plugins derive from one of these two.

    The engine calls a reward from a worker thread while it draws the next samples, with at most `concurrency` calls at
    once. A reward must not change process state: working directory, torch defaults and flags, signal handlers.
    """

    media: ClassVar[frozenset[Literal["image", "video"]]] = frozenset({"image"})
    """Media types that the reward can score."""
    range: ClassVar[tuple[float, float]]
    """Smallest and largest possible value; infinite where unbounded."""
    group_by: ClassVar[str | None] = None
    """Metadata key by which evaluation groups its results (GenEval: `tag`). The overall score is then the unweighted
    mean of the group means."""
    concurrency: int = 1
    """Maximum number of concurrent calls."""
    is_remote: ClassVar[bool] = False
    """Whether scores are computed in another process, so that scoring cannot change the state of this one."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        self.options = options
        self.device = device

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - optional
        """Raise UserError, naming the prompt, if a prompt lacks data that this reward needs. Called before the run.

        Conditioning media have a kind and a digest here and are known to be readable; their content is available only
        in `score`.
        """

    def examples(self) -> Sequence[Example]:
        """Return samples known to be good and bad, shipped with the plugin or generated. By default none.

        `dgpo score --self-test` and the contract suite score them. Provide at least one of each, or none. For a
        `GroupReward`, the examples of one prompt form a group.
        """
        return ()

    def provenance(self) -> Mapping[str, Any]:
        """Return what the scores depend on besides the options, as JSON values, for the records of suites: the served
        `model` and its `revision`, the digest of a `template`. By default nothing. Never a token or a password."""
        return {}

    def keep_in(self, directory: Path) -> None:  # noqa: B027 - optional
        """Keep in a directory of the run whatever repeats scores when the run is resumed. By default nothing.

        For rewards whose scores depend on more than media and prompt, such as the answers of a server: an iteration
        that was interrupted is drawn again, with the same media, and must get the same scores. Called in every process
        of a training run, once, before the first sample is scored; the directory belongs to the reward's label and need
        not exist. Other commands do not call it. Raises UserError if what is there is from another reward.
        """

    def costs(self) -> Mapping[str, float]:
        """Return what scoring has cost since the last call: finite numbers by name, by default none.

        Logged once per iteration in timings.jsonl, never in metrics.jsonl, since a resumed run may differ. They are
        summed over processes, except for names that end in `_seconds`, of which the largest is logged.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - optional
        """Release processes, connections and pools. Called once, at the end of the run."""


class RewardModel(RewardBase):
    """A reward that scores each sample independently."""

    @abstractmethod
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score media [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1], one value per sample.

        `prompts` holds the prompt of each sample. A sample's value must not depend on the rest of the batch. Mark
        samples that cannot be scored as missing; never return 0 for them. Any exception marks the whole batch as
        missing, except out-of-memory errors: the engine then scores the batch again in halves; and except
        `RewardUnusable`, which ends the command.
        """


class GroupReward(RewardBase):
    """A reward that compares the samples of one prompt: pairwise and listwise judges, win rates."""

    @abstractmethod
    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score the media [G, 3, H, W] or [G, F, 3, H, W] of one prompt, float in [0, 1], one value per member; G >= 2.

        The engine passes complete groups, without members whose media are not finite. A group with fewer than two
        members left is missing and not passed. `keys` identify the members: they are unique, and do not depend on how
        the run is split across ranks. Permuting the members must permute the values: choose subsets and orders of
        comparison by key, not by index. Mark members that cannot be scored as missing; never return 0 for them. Any
        exception, out-of-memory errors included, marks the whole group as missing, except for `RewardUnusable`, which
        ends the command.
        """


AnyReward = RewardModel | GroupReward

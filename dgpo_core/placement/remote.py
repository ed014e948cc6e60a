"""What workers and services have in common: failures, the reward's face, and samples that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import DgpoError
from dgpo_core.types import Prompt, Scores

if TYPE_CHECKING:
    from dgpo_schemas.service import RewardDescription

__all__ = ["OutOfMemory", "RemoteReward", "RewardLost", "RewardRaised", "check_scores", "in_halves", "is_out_of_memory"]


class RewardLost(DgpoError):
    """The place where a reward runs could not score a batch, however often it was tried."""


class RewardRaised(DgpoError):
    """The reward itself failed, elsewhere; the message is its own. Trying again would not help."""


class OutOfMemory(DgpoError):
    """The batch does not fit into the memory there; half of it may."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a card or in the process."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def in_halves(score: Callable[[Tensor, Sequence[Prompt]], Scores], media: Tensor, prompts: Sequence[Prompt]) -> Scores:
    """`score(media, prompts)`, in two halves where memory runs out, and in halves of those. Raises OutOfMemory where
    one sample alone does not fit."""
    try:
        return score(media, prompts)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(prompts) <= 1:
            raise OutOfMemory(f"out of memory, with {len(prompts)} sample: {error}") from error
    middle = (len(prompts) + 1) // 2
    parts = [(media[:middle], prompts[:middle]), (media[middle:], prompts[middle:])]
    done = [check_scores(in_halves(score, *part), len(part[1])) for part in parts]
    told = [one.diagnostics or ({},) * len(one.values) for one in done]
    return Scores(
        torch.cat([one.values for one in done]), torch.cat([one.missing for one in done]), (*told[0], *told[1])
    )


def check_scores(scores: Scores, count: int) -> Scores:
    """The scores, if they are one per sample. Raises ValueError: they could be neither joined nor told apart."""
    if not isinstance(scores, Scores):
        raise ValueError(f"returned {type(scores).__name__}, not Scores")
    if scores.values.shape != (count,) or scores.missing.shape != (count,):
        raise ValueError(
            f"returned values {tuple(scores.values.shape)} and missing {tuple(scores.missing.shape)} "
            f"for {count} samples"
        )
    if scores.diagnostics and len(scores.diagnostics) != count:
        raise ValueError(f"returned {len(scores.diagnostics)} diagnostics for {count} samples")
    return scores


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

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

__all__ = [
    "OutOfMemory",
    "RemoteReward",
    "RewardLost",
    "RewardRaised",
    "check_scores",
    "in_halves",
    "is_out_of_memory",
    "joined",
]


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


def in_halves(
    score: Callable[[Tensor, Sequence[Prompt]], Scores],
    media: Tensor,
    prompts: Sequence[Prompt],
    too_much: type[Exception] | tuple[type[Exception], ...] = (),
) -> Scores:
    """`score(media, prompts)`, in two halves where memory runs out or it raises `too_much`, and in halves of those.
    Raises OutOfMemory, or what was raised, where one sample alone does not fit."""
    try:
        return score(media, prompts)
    except Exception as error:
        memory = is_out_of_memory(error)
        if not memory and not isinstance(error, too_much):
            raise
        if len(prompts) <= 1:
            if not memory:
                raise
            raise OutOfMemory(f"out of memory, with {len(prompts)} sample: {error}") from error
    middle = (len(prompts) + 1) // 2
    parts = [(media[:middle], prompts[:middle]), (media[middle:], prompts[middle:])]
    return joined([check_scores(in_halves(score, *part, too_much), len(part[1])) for part in parts])


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of samples in a row, from those of its stretches."""
    if len(parts) == 1:
        return parts[0]
    told = [part.diagnostics or ({},) * len(part.values) for part in parts]
    return Scores(
        torch.cat([part.values for part in parts]),
        torch.cat([part.missing for part in parts]),
        tuple(one for part in told for one in part),
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

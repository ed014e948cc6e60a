"""A batch in parts, where a server does not take it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dgpo_core.training.scores import joined
from dgpo_core.types import Prompt, Scores
from dgpo_remote.reward import RewardLost

__all__ = ["TooMuch", "halves", "score_in_parts"]


class TooMuch(RewardLost):
    """The server does not take so much at once; it may take a part of it."""


def halves(count: int) -> list[slice]:
    """The two halves of so many, the first not smaller."""
    middle = (count + 1) // 2
    return [slice(0, middle), slice(middle, count)]


def score_in_parts(
    score: Callable[[Tensor, Sequence[Prompt]], Scores],
    media: Tensor,
    prompts: Sequence[Prompt],
    parts: Sequence[slice] = (),
) -> Scores:
    """`score(media, prompts)` part by part, each in halves as often as `score` raises TooMuch. No parts: all at once.
    Raises TooMuch where one sample alone is too much. What `score` gives is
    checked (`check_scores`)."""
    if len(parts) <= 1:
        try:
            return score(media, prompts)
        except TooMuch:
            if len(prompts) <= 1:
                raise
            parts = halves(len(prompts))
    return joined([score_in_parts(score, media[part], prompts[part]) for part in parts])

"""The prompt source contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from dgpo_core.types import Prompt

__all__ = ["PromptSource"]


class PromptSource(ABC):
    """Generates prompts."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """Return the prompts of one split. Deterministic for the same options; the splits are disjoint."""

    def reworded(self, prompts: Sequence[Prompt]) -> Sequence[str | None]:
        """Return each prompt's text in other words that no training prompt has, None where it cannot be said otherwise.

        For `evaluation.monitors.wording`. The prompts have the format of this source, but may come from elsewhere.
        Deterministic. By default none.
        """
        return [None] * len(prompts)

"""The reward `pairwise`: the samples of a prompt compared by another reward, so that only its order counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.contracts import GroupReward, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_judge.comparing import win_rates

if TYPE_CHECKING:
    from dgpo_judge.options import PairwiseOptions

__all__ = ["PairwiseReward"]


class PairwiseReward(GroupReward):
    """(wins + ties / 2) / comparisons with all other members: the rank transform of the reward, ties averaged.

    Raises UserError if the reward compares samples itself.
    """

    range = (0.0, 1.0)
    options: PairwiseOptions

    def __init__(self, options: PairwiseOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        inner = get_registry().create("reward", options.reward, device=device)
        if not isinstance(inner, RewardModel):
            inner.close()
            raise UserError(f"pairwise: the reward {options.reward.use} compares the samples of a prompt already")
        self.inner = inner
        self.media = inner.media  # type: ignore[misc]
        self.group_by = inner.group_by  # type: ignore[misc]
        self.concurrency = inner.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Apply the checks of the reward."""
        self.inner.check_prompts(prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return what the reward reports of itself."""
        return self.inner.provenance()

    def keep_in(self, directory: Path) -> None:
        """Let the reward keep what it needs."""
        self.inner.keep_in(directory)

    def costs(self) -> Mapping[str, float]:
        """Return the costs of the reward."""
        return self.inner.costs()

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score the members [G, ...] of a prompt: float32 [G] on the CPU.

        A member without a value is missing, and so are all if fewer than two have one. Diagnostics: those of the
        reward, with its value as the subscore `value`.
        """
        scores = self.inner.score(media, [prompt] * len(media))
        values = scores.values.double().cpu().masked_fill(scores.missing.cpu(), torch.nan).tolist()
        present = [i for i, value in enumerate(values) if math.isfinite(value)]
        preferences = {pair: self._preference(values[pair[0]], values[pair[1]]) for pair in combinations(present, 2)}
        rates = torch.tensor(win_rates(len(values), preferences), dtype=torch.float64)
        details: Sequence[Mapping[str, Any]] = scores.diagnostics or [{}] * len(values)
        diagnostics = tuple(
            {**known, "subscores": {"value": value}}
            if math.isfinite(value)
            else {"reason": "the reward gave no value", **known}
            for known, value in zip(details, values, strict=True)
        )
        return Scores(rates.nan_to_num().float(), rates.isnan(), diagnostics)

    def _preference(self, one: float, other: float) -> float:
        if abs(one - other) <= self.options.tie_band:
            return 0.5
        return 1.0 if one > other else 0.0

    def examples(self) -> Sequence[Example]:
        """Return none: the examples of a reward need not have a prompt in common."""
        return ()

    def close(self) -> None:
        """Close the reward."""
        self.inner.close()

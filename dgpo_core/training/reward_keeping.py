"""What rewards keep in the run directory, and what scoring cost: the optional hooks of the reward contract."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dgpo_core.contracts import AnyReward
from dgpo_core.training.reward_calls import Reward

__all__ = ["DIRECTORY", "costs_of", "keep_in", "total_costs"]

log = logging.getLogger(__name__)

DIRECTORY = "rewards"
"""The directory of the run in which each reward may have a directory of its label."""
Costs = Mapping[str, Mapping[str, float]]
"""Label -> name -> number."""


def keep_in(rewards: Iterable[Reward], directory: Path) -> None:
    """Give each reward its directory in the run. Raises UserError if a reward rejects what is there."""
    for label, model in _models(rewards):
        model.keep_in(directory / DIRECTORY / label)


def costs_of(rewards: Iterable[Reward]) -> dict[str, dict[str, float]]:
    """Return what this process's rewards report since the last call; rewards that report nothing are left out."""
    found = {}
    for label, model in _models(rewards):
        try:
            costs = {str(name): float(value) for name, value in model.costs().items() if math.isfinite(value)}
        except Exception:
            log.warning("reward %s: its costs could not be read", label, exc_info=True)
            continue
        if costs:
            found[label] = costs
    return found


def total_costs(parts: Sequence[Costs]) -> dict[str, dict[str, float]]:
    """Combine the costs of all processes: sums, and the largest of names that end in `_seconds`."""
    total: dict[str, dict[str, float]] = {}
    for part in parts:
        for label, costs in part.items():
            known = total.setdefault(label, {})
            for name, value in costs.items():
                together = max if name.endswith("_seconds") else math.fsum
                known[name] = together([known[name], value]) if name in known else value
    return total


def _models(rewards: Iterable[Reward]) -> Iterator[tuple[str, AnyReward]]:
    """Yield each reward model once, with a label that is unique: of equal labels, the later ones are numbered."""
    labels: dict[str, int] = {}
    seen: set[int] = set()
    for reward in rewards:
        if id(reward.model) in seen:
            continue
        seen.add(id(reward.model))
        labels[reward.label] = count = labels.get(reward.label, 0) + 1
        yield (reward.label if count == 1 else f"{reward.label}-{count}"), reward.model

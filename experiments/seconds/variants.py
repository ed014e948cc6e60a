"""The savings that are compared: exact ones by the engine, exact ones by settings, and approximate rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import torch

from dgpo_core.training import accumulation
from dgpo_core.training.policy import Policy

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.training.microbatches import MicroBatch
    from dgpo_core.training.models import Models

__all__ = ["BASELINE", "SETTINGS", "VARIANTS", "Engine", "Variant", "as_before"]

Engine = Literal["graph", "ema"]
"""`graph`: the first micro-batch of a group serves statistic and gradient with one pass; `ema`: no pass of the fast EMA
while it is the policy."""

BASELINE = "baseline"
SETTINGS: Mapping[str, Any] = {
    "rollout.guidance": 1.5,
    "rollout.group_size": 8,
    "rollout.groups": 4,
    "optimizer.micro_batch": 4,
    "objective.clip": 0.01,
    "timesteps.count": 2,
    "evaluation.guidance": 1.0,
    "evaluation.steps": 8,
    "evaluation.prompts": 100,
    "evaluation.monitors": {},
    "evaluation.images": 0,
    "evaluation.every": 0,
    "evaluation.at_start": False,
    "checkpoints.every": 1_000_000,
}
"""Changes of experiments/base-video.yaml in every variant: groups of two micro-batches, and guidance to save on."""


@dataclass(frozen=True, slots=True)
class Variant:
    """kind: `exact` results equal the baseline's bit for bit; with `approximate` ones, other samples are drawn. engine:
    the engine's own savings that are on."""

    name: str
    kind: Literal["exact", "approximate"]
    engine: Sequence[Engine] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The variant whose weights it has after as many iterations: itself, or the baseline if it is exact."""
        return BASELINE if self.kind == "exact" else self.name


MERGED = {"rollout.merge_adapter": True}
INTERVAL = {"rollout.guidance_interval": [0.3, 0.9]}
STEPS = {"rollout.steps": 5}
CACHE = {"backbone.options.rollout_cache": {"use": "taylorseer"}}

VARIANTS = (
    Variant(BASELINE, "exact"),
    Variant("2n − 1 passes", "exact", ("graph",)),
    Variant("no pass of an equal EMA", "exact", ("ema",)),
    Variant("both", "exact", ("graph", "ema")),
    Variant("adapter merged", "approximate", (), MERGED),
    Variant("guidance interval", "approximate", (), INTERVAL),
    Variant("5 of 8 steps", "approximate", (), STEPS),
    Variant("feature cache", "approximate", (), CACHE),
    Variant("all together", "approximate", ("graph", "ema"), MERGED | INTERVAL | STEPS),
)


@contextmanager
def as_before(engine: Sequence[Engine]) -> Iterator[None]:
    """Context manager that switches the engine's own savings off, except those in `engine`."""

    def each_twice(models: Models, batches: list[MicroBatch]) -> tuple[Tensor, None]:
        with torch.no_grad():
            return torch.cat([models.objective.statistic(models.predictions(b)) for b in batches]).sum(), None

    with ExitStack() as patches:
        if "graph" not in engine:
            patches.enter_context(patch.object(accumulation, "statistic_of_bundle", each_twice))
        if "ema" not in engine:
            patches.enter_context(patch.object(Policy, "fast_is_policy", False))
        yield

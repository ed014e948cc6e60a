"""How the cost of an iteration grows: with the group size, the groups, the micro-batch, the resolution.

Each series changes one number. Costs are seconds relative to the first point; an iteration should cost in proportion to
its samples, and a micro-batch of any size the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measuring import configuration, in_turns
from benchmarks.parts import registry_with_components
from dgpo_core.plugins.registry import Registry

__all__ = ["SERIES", "Point", "Series", "measure"]

PHASES = ("rollout", "optimize")


@dataclass(frozen=True)
class Series:
    """settings: of every point, before the one that changes; `{}` in `key` is the number; samples: whether the number
    is in proportion to the samples of an iteration."""

    name: str
    title: str
    key: str
    numbers: Sequence[int]
    samples: bool = False
    settings: Sequence[str] = ()
    random: bool = False
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Point:
    """A number and what an iteration took, in seconds by phase."""

    number: int
    seconds: dict[str, float]


SERIES = (
    Series("group-size", "group size G, 6 groups", "rollout.group_size={}", (4, 8, 12, 24), samples=True,
           settings=("rollout.groups=6", "rollout.micro_batch=24", "optimizer.micro_batch=24")),
    Series("groups", "groups, G = 8", "rollout.groups={}", (3, 6, 12, 18), samples=True,
           settings=("rollout.group_size=8", "rollout.micro_batch=24", "optimizer.micro_batch=24")),
    Series("micro-batch", "micro-batch, 6 groups of 8", "rollout.micro_batch={}", (1, 2, 4, 8, 16, 48),
           settings=("rollout.groups=6", "rollout.group_size=8"), more=("optimizer.micro_batch={}",)),
    Series("resolution", "side in pixels, 4 groups of 4 (a transformer of random weights, 4 x 4 pixels a latent)",
           "rollout.resolution={}", (32, 64, 128, 192), random=True,
           settings=("rollout.groups=4", "rollout.group_size=4", "rollout.micro_batch=16", "optimizer.micro_batch=16")),
)  # fmt: skip


def measure(series: Series, *, iterations: int, turns: int) -> list[Point]:
    """Run the series."""
    registry: Registry = registry_with_components()
    with tempfile.TemporaryDirectory() as directory:
        settings = list(series.settings)
        if series.random:
            from dgpo_sd3.testing import make_tiny_checkpoint

            checkpoint = make_tiny_checkpoint(directory, layers=4, width=128, pos_embed_max_size=32)
            settings += [f"backbone.checkpoint={checkpoint}", "rewards=[{use: free}]", "prompts.train={use: numbered}"]
        points = {
            str(n): configuration(
                [*settings, *(key.format(n) for key in (series.key, *series.more))], registry, iterations
            )
            for n in series.numbers
        }
        found = in_turns(points, registry, PHASES, turns)
    return [Point(n, found[str(n)]) for n in series.numbers]

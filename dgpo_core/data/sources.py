"""Distribute the groups of an iteration over several prompt sources.

Groups are numbered over the whole run. Group p belongs to the source that is furthest behind its share of the groups
0..p (the first one on a tie), as in smooth weighted round-robin. Any range of groups, such as those of an update,
therefore has sources nearly in proportion to their weights, and later iterations compensate for rounding. Weights are
integers here, so the order of sources is periodic and a function of p alone; no state is kept between iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING

from dgpo_core.types import Prompt
from dgpo_schemas.sections.prompts import STEP

if TYPE_CHECKING:
    from dgpo_core.draws import Draws
    from dgpo_schemas.sections.prompts import SourceBlock

__all__ = ["Source", "cut_to_shares", "integer_weights", "of_sources", "turns"]


@dataclass(frozen=True, slots=True)
class Source:
    """Prompts with a source name (empty if a run has a single list) and an integer weight relative to other sources."""

    name: str
    weight: int
    prompts: Sequence[Prompt]


def integer_weights(blocks: Sequence[SourceBlock]) -> list[int]:
    """Return the weights of sources as the smallest integers in the same ratio."""
    steps = [round(block.weight * STEP) for block in blocks]
    common = gcd(*steps) if steps else 1
    return [step // common for step in steps]


class _Walk:
    """The sequence of sources, group by group. Keeps its position, because iterations are consecutive."""

    def __init__(self, weights: tuple[int, ...]) -> None:
        self.weights, self.total = weights, sum(weights)
        self.group, self.behind = 0, [0] * len(weights)

    def to(self, group: int) -> list[int]:
        """Move to a group (less than `total`); return how many earlier groups each source has had."""
        if group < self.group:
            self.group, self.behind = 0, [0] * len(self.weights)
        while self.group < group:
            self.step()
        return [(group * w - lag) // self.total for w, lag in zip(self.weights, self.behind, strict=True)]

    def step(self) -> int:
        """Advance by one group and return its source."""
        behind = [lag + weight for lag, weight in zip(self.behind, self.weights, strict=True)]
        chosen = max(range(len(behind)), key=behind.__getitem__)
        behind[chosen] -= self.total
        self.group, self.behind = (self.group + 1) % self.total, behind  # all zero at the end of a period
        return chosen


_walk = lru_cache(maxsize=8)(_Walk)


def turns(weights: tuple[int, ...], start: int, count: int) -> tuple[list[int], list[int]]:
    """Return how many groups before `start` each source has had, and the source indices of the next `count` groups.

    The sequence repeats after sum(weights), which may be millions; computes no more groups than requested.
    """
    walk = _walk(weights)
    passes, place = divmod(start, walk.total)
    taken = [passes * weight + had for weight, had in zip(weights, walk.to(place), strict=True)]
    return taken, [walk.step() for _ in range(count)]


def of_sources(sources: Sequence[Source], iteration: int, groups: int, draws: Draws) -> list[Prompt]:
    """Return the prompts of an iteration (from 0), one per group.

    Each source iterates over its prompts in a random order keyed by its name and epoch; a single source has the same
    order as a run without named sources.
    """
    taken, chosen = turns(tuple(source.weight for source in sources), iteration * groups, groups)
    keys = [draws] if len(sources) == 1 else [draws.at("source", source.name) for source in sources]
    orders: dict[tuple[int, int], list[int]] = {}
    found = []
    for i in chosen:
        prompts = sources[i].prompts
        epoch, place = divmod(taken[i], len(prompts))
        taken[i] += 1
        if (i, epoch) not in orders:
            orders[i, epoch] = keys[i].at(epoch).permutation(len(prompts)).tolist()
        found.append(prompts[orders[i, epoch][place]])
    return found


def cut_to_shares(sources: Sequence[Source], count: int) -> list[int]:
    """Return how many of the `count` evaluation prompts each source contributes, at least one.

    Proportional to the weights, rounded by largest remainder (the first source on a tie).
    """
    total = sum(source.weight for source in sources)
    counts = [count * source.weight // total for source in sources]
    remainders = [count * source.weight % total for source in sources]
    for i in sorted(range(len(sources)), key=lambda i: -remainders[i])[: count - sum(counts)]:
        counts[i] += 1
    return [max(1, n) for n in counts]

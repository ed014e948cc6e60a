"""Several sources of prompts: how an iteration's groups are shared out among them.

Groups are numbered over the whole run; group p belongs to the source that is furthest behind its share of the groups up
to and with p (the first of several), as in smooth weighted round-robin. Every stretch of groups, such as those of an
update, so has sources in nearly the proportion of their weights, and what is left over in one iteration is made up for
in the next ones. Weights are whole numbers here, so the order of sources repeats exactly: it is a function of p alone,
and nothing is kept from one iteration to the next.
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
    """Prompts that share a name, empty where a run has one list; weight: a whole number, in proportion to those of the
    other sources."""

    name: str
    weight: int
    prompts: Sequence[Prompt]


def integer_weights(blocks: Sequence[SourceBlock]) -> list[int]:
    """Weights of sources as the smallest whole numbers in their proportion."""
    steps = [round(block.weight * STEP) for block in blocks]
    common = gcd(*steps) if steps else 1
    return [step // common for step in steps]


class _Walk:
    """The turns of sources, group by group. It goes on from where it was, for iterations follow each other."""

    def __init__(self, weights: tuple[int, ...]) -> None:
        self.weights, self.total = weights, sum(weights)
        self.group, self.behind = 0, [0] * len(weights)

    def to(self, group: int) -> list[int]:
        """Stand before this group, less than `total`; how many groups each source has had by then."""
        if group < self.group:
            self.group, self.behind = 0, [0] * len(self.weights)
        while self.group < group:
            self.step()
        return [(group * w - lag) // self.total for w, lag in zip(self.weights, self.behind, strict=True)]

    def step(self) -> int:
        """The source of the next group."""
        behind = [lag + weight for lag, weight in zip(self.behind, self.weights, strict=True)]
        chosen = max(range(len(behind)), key=behind.__getitem__)
        behind[chosen] -= self.total
        self.group, self.behind = (self.group + 1) % self.total, behind  # which is 0 everywhere when they repeat
        return chosen


_walk = lru_cache(maxsize=8)(_Walk)


def turns(weights: tuple[int, ...], start: int, count: int) -> tuple[list[int], list[int]]:
    """How many groups before group `start` each source has had, and the sources, as numbers, of the `count` groups from
    there on. They repeat after sum(weights), which may be millions: no more are looked at than have been asked for."""
    walk = _walk(weights)
    passes, place = divmod(start, walk.total)
    taken = [passes * weight + had for weight, had in zip(weights, walk.to(place), strict=True)]
    return taken, [walk.step() for _ in range(count)]


def of_sources(sources: Sequence[Source], iteration: int, groups: int, draws: Draws) -> list[Prompt]:
    """The prompts of an iteration (from 0). Each source passes through its own prompts in an order that is keyed by its
    name and the pass; a single source has the order of a run without any."""
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
    """How many of `count` prompts of an evaluation each source may give: its share by weight, rounded by the largest
    remainders (the first of equal ones), but at least one."""
    total = sum(source.weight for source in sources)
    split_samples = [count * source.weight // total for source in sources]
    remainders = [count * source.weight % total for source in sources]
    for i in sorted(range(len(sources)), key=lambda i: -remainders[i])[: count - sum(split_samples)]:
        split_samples[i] += 1
    return [max(1, share) for share in split_samples]

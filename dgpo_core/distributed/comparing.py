"""Whole groups for rewards that compare: members are kept until their group is whole, and travel where processes share
it.

Legend: samples are numbered in flat, group-major order; G members of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.types import Prompt, SampleKey, Scores

if TYPE_CHECKING:
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.draws import Draws

__all__ = [
    "NOTHING_TO_COMPARE",
    "NOT_FINITE",
    "OTHER_SIZES",
    "Layout",
    "Members",
    "WholeGroup",
    "by_prompt",
    "compared",
]

NOT_FINITE = "the media are not finite"
NOTHING_TO_COMPARE = "fewer than two members of its group can be shown: there is nothing to compare it with"

OTHER_SIZES = "the samples of its prompt have several sizes; those that are compared must have one"


@dataclass(frozen=True)
class Layout:
    """Which samples make a group, who draws them and what they are called.

    members: G; draws: the key that the samples' noise is drawn under; samples: the numbers of each process's samples;
    rank: this process among them.
    """

    members: int
    draws: Draws
    samples: Sequence[Sequence[int]]
    rank: int = 0

    def key(self, sample: int) -> SampleKey:
        """Of a sample: the one that it is drawn from."""
        return self.draws.at(*divmod(sample, self.members)).key

    @cached_property
    def shared(self) -> Mapping[int, Mapping[int, Sequence[int]]]:
        """Group to process to its samples, of the groups that several processes have members of; the first process is
        the one with member 0, which has the group scored."""
        holders: dict[int, dict[int, list[int]]] = {}
        for rank, samples in enumerate(self.samples):
            for sample in samples:
                holders.setdefault(sample // self.members, {}).setdefault(rank, []).append(sample)
        return {
            group: dict(sorted(held.items(), key=lambda one: min(one[1])))
            for group, held in sorted(holders.items())
            if len(held) > 1
        }


@dataclass(frozen=True, slots=True)
class WholeGroup:
    """Media [G, ...] of a group in the order of its members, in memory of their own, with the members' keys."""

    number: int
    media: Tensor
    prompt: Prompt
    keys: tuple[SampleKey, ...]


class Members:
    """Holds this process's samples until the groups that they belong to are whole."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._kept: dict[int, list[tuple[int, Tensor]]] = {}  # a group's stretches of samples, by their first
        self._prompts: dict[int, Prompt] = {}

    def take(self, media: Tensor, prompts: Sequence[Prompt], samples: Sequence[int]) -> Iterator[WholeGroup]:
        """Media [B, ...] with the prompt and the number of each sample, which follow each other; yields the groups
        that they complete."""
        assert len(media) == len(prompts) == len(samples), "a number for each sample"
        start = 0
        for group, numbers in groupby(samples, lambda sample: sample // self.layout.members):
            first, *others = numbers
            end = start + 1 + len(others)
            # A copy: a view of the batch would keep all of it in memory.
            rows = media[start:end].clone(memory_format=torch.contiguous_format)
            self._kept.setdefault(group, []).append((first, rows))
            self._prompts[group] = prompts[start]
            start = end
            if sum(len(part) for _, part in self._kept[group]) == self.layout.members:
                yield self._whole(group)

    def exchange(self, processes: Processes) -> Iterator[WholeGroup]:
        """Sends the members of groups that processes share to the one that has member 0, and yields those that are
        whole here now. To be called by all processes, when each has taken all of its samples."""
        for group, held in self.layout.shared.items():  # in one order everywhere, so that nobody waits in a circle
            owner, *others = held
            for rank in others:
                if rank == self.layout.rank:
                    processes.send(self._joined(self._kept.pop(group)), owner)
                elif owner == self.layout.rank:
                    _, like = self._kept[group][0]
                    rows = processes.receive(rank, (len(held[rank]), *like.shape[1:]), like.dtype)
                    self._kept[group].append((held[rank][0], rows.to(like.device)))
            if owner == self.layout.rank:
                yield self._whole(group)

    def _whole(self, group: int) -> WholeGroup:
        numbers = range(group * self.layout.members, (group + 1) * self.layout.members)
        keys = tuple(self.layout.key(sample) for sample in numbers)
        return WholeGroup(group, self._joined(self._kept.pop(group)), self._prompts.pop(group), keys)

    @staticmethod
    def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
        rows = [part for _, part in sorted(parts, key=lambda one: one[0])]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def by_prompt(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The places of equal prompts together, in the order of the first of each."""
    found: list[list[int]] = []
    of_text: dict[str, list[list[int]]] = {}  # prompts cannot be hashed for their metadata
    for place, prompt in enumerate(prompts):
        alike = of_text.setdefault(prompt.text, [])
        group = next((group for group in alike if prompts[group[0]] == prompt), None)
        if group is None:
            alike.append(group := [])
            found.append(group)
        group.append(place)
    return found


def compared(media: Tensor, keys: Sequence[SampleKey], ask: Callable[[Tensor, Sequence[SampleKey]], Scores]) -> Scores:
    """What `ask` says of the members of a group whose media [G, ...] are finite; the others are missing, and all are,
    without asking, if fewer than two are left. `ask` gives checked scores with diagnostics for each member."""
    finite = media.flatten(1).isfinite().all(1).cpu()
    shown = finite.nonzero().flatten().tolist()
    if len(shown) < 2:
        reasons = [NOTHING_TO_COMPARE if fine else NOT_FINITE for fine in finite.tolist()]
        return Scores(torch.zeros(len(keys)), ~torch.zeros_like(finite), tuple({"reason": why} for why in reasons))
    if len(shown) == len(keys):
        return ask(media, keys)
    found = ask(media[shown], [keys[i] for i in shown])
    values, missing = torch.zeros(len(keys), dtype=found.values.dtype), ~finite
    diagnostics: list[Mapping[str, Any]] = [{"reason": NOT_FINITE}] * len(keys)
    values[shown], missing[shown] = found.values, found.missing
    for place, said in zip(shown, found.diagnostics, strict=True):
        diagnostics[place] = said
    return Scores(values, missing, tuple(diagnostics))

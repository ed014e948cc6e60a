"""Assemble complete groups for rewards that compare samples, across micro-batches and ranks.

Samples are numbered in flat, group-major order; G is the number of members per group.
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
    from dgpo_core.draws import SampleDraws

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
NOTHING_TO_COMPARE = "fewer than two samples of its group have finite media: there is nothing to compare it with"

OTHER_SIZES = "the samples of its prompt have several sizes; samples that are compared must have the same size"


@dataclass(frozen=True)
class Layout:
    """How samples form groups and how they are split across ranks.

    members: G; draws: key of the samples' noise; samples: the sample numbers of each rank; rank: this process's rank.
    """

    members: int
    draws: SampleDraws
    samples: Sequence[Sequence[int]]
    rank: int = 0

    def key(self, sample: int) -> SampleKey:
        """Return the key from which a sample is drawn."""
        return self.draws.at(*divmod(sample, self.members)).key

    @cached_property
    def shared(self) -> Mapping[int, Mapping[int, Sequence[int]]]:
        """The groups that are split across ranks: group -> rank -> sample numbers.

        The first rank of each group holds member 0 and scores the group.
        """
        holders: dict[int, dict[int, list[int]]] = {}
        for rank, samples in enumerate(self.samples):
            for sample in samples:
                holders.setdefault(sample // self.members, {}).setdefault(rank, []).append(sample)
        return {
            group: dict(sorted(held.items(), key=lambda item: min(item[1])))
            for group, held in sorted(holders.items())
            if len(held) > 1
        }


@dataclass(frozen=True, slots=True)
class WholeGroup:
    """A complete group: media [G, ...] in member order (not a view of a batch), its prompt and the members' keys."""

    number: int
    media: Tensor
    prompt: Prompt
    keys: tuple[SampleKey, ...]


class Members:
    """Buffers this rank's samples until their groups are complete."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._kept: dict[int, list[tuple[int, Tensor]]] = {}  # group -> (first sample number, rows) of each part
        self._prompts: dict[int, Prompt] = {}

    def take(self, media: Tensor, prompts: Sequence[Prompt], samples: Sequence[int]) -> Iterator[WholeGroup]:
        """Add media [B, ...] with the prompt and the number of each sample, in ascending order; yield the groups that
        they complete."""
        assert len(media) == len(prompts) == len(samples), "one number per sample"
        start = 0
        for group, numbers in groupby(samples, lambda sample: sample // self.layout.members):
            first, *others = numbers
            end = start + 1 + len(others)
            # Copied because a view would keep the whole batch in memory.
            rows = media[start:end].clone(memory_format=torch.contiguous_format)
            self._kept.setdefault(group, []).append((first, rows))
            self._prompts[group] = prompts[start]
            start = end
            if sum(len(part) for _, part in self._kept[group]) == self.layout.members:
                yield self._whole(group)

    def exchange(self, processes: Processes) -> Iterator[WholeGroup]:
        """Send the members of split groups to the rank that holds member 0; yield the groups completed on this rank.

        All ranks must call this together, after each has added all of its samples.
        """
        for group, held in self.layout.shared.items():  # the same order on every rank, to avoid a deadlock
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
        rows = [part for _, part in sorted(parts, key=lambda item: item[0])]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def by_prompt(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Group the indices of equal prompts, in the order of their first occurrence."""
    groups: list[list[int]] = []
    by_text: dict[str, list[list[int]]] = {}  # prompts are not hashable because of their metadata
    for index, prompt in enumerate(prompts):
        same_text = by_text.setdefault(prompt.text, [])
        group = next((group for group in same_text if prompts[group[0]] == prompt), None)
        if group is None:
            same_text.append(group := [])
            groups.append(group)
        group.append(index)
    return groups


def compared(
    media: Tensor, keys: Sequence[SampleKey], score: Callable[[Tensor, Sequence[SampleKey]], Scores]
) -> Scores:
    """Score the members of a group whose media [G, ...] are finite; the other members are missing.

    If fewer than two members are finite, all are missing and `score` is not called. `score` returns checked scores with
    diagnostics for each member that it receives.
    """
    finite = media.flatten(1).isfinite().all(1).cpu()
    valid = finite.nonzero().flatten().tolist()
    if len(valid) < 2:
        reasons = [NOTHING_TO_COMPARE if fine else NOT_FINITE for fine in finite.tolist()]
        return Scores(
            torch.zeros(len(keys)), ~torch.zeros_like(finite), tuple({"reason": reason} for reason in reasons)
        )
    if len(valid) == len(keys):
        return score(media, keys)
    scores = score(media[valid], [keys[i] for i in valid])
    values, missing = torch.zeros(len(keys), dtype=scores.values.dtype), ~finite
    diagnostics: list[Mapping[str, Any]] = [{"reason": NOT_FINITE}] * len(keys)
    values[valid], missing[valid] = scores.values, scores.missing
    for i, entry in zip(valid, scores.diagnostics, strict=True):
        diagnostics[i] = entry
    return Scores(values, missing, tuple(diagnostics))

"""What an update works on: members packed into micro-batches, and these at a time, ready for the objective.

Legend: g groups, G members, B members in a micro-batch, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from dgpo_core.distributed.processes import split_samples
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.paths import PathSteps
from dgpo_core.flow.velocity import interpolate, velocity_from_x0, velocity_target
from dgpo_core.types import Conditioning, PathStep, Predictions, Prompt, TrainingBatch

__all__ = ["Bundle", "Member", "Members", "MicroBatch", "Update", "active_members", "bundles", "shared"]

Member = tuple[int, int]
Bundle = list[list[Member]]
"""Micro-batches of (group, member) that together complete every group they touch, as far as this process has it."""


def bundles(
    active: list[list[int]], micro_batch: int, first: int = 0, buckets: Sequence[Hashable] | None = None
) -> Iterator[Bundle]:
    """Pack the active members of groups first, first + 1, ... into bundles with at most `micro_batch` members a batch.

    Whole groups of one bucket share a micro-batch as long as they fit; a group larger than that is a bundle of its own,
    in nearly equal parts. Groups without active members vanish. buckets: of each group; all alike if None.
    """
    open_batch: list[Member] = []
    open_bucket: Hashable = None
    for group, members in enumerate(active, first):
        if not members:
            continue
        named = [(group, member) for member in members]
        here = None if buckets is None else buckets[group - first]
        if open_batch and (len(open_batch) + len(named) > micro_batch or here != open_bucket):
            yield [open_batch]
            open_batch = []
        open_bucket = here
        if len(named) <= micro_batch:
            open_batch = open_batch + named
        else:
            parts = -(-len(named) // micro_batch)
            edges = [len(named) * i // parts for i in range(parts + 1)]
            yield [named[a:b] for a, b in pairwise(edges)]
    if open_batch:
        yield [open_batch]


def active_members(batch: TrainingBatch, groups: range, *, skip_zero_weights: bool) -> list[list[int]]:
    """Members of each group that take part: scored ones in groups of two or more."""
    use = batch.scored & (batch.scored.sum(1, keepdim=True) >= 2)
    if skip_zero_weights:
        use = use & (batch.signed_weights != 0)
    return [row.nonzero().flatten().tolist() for row in use[groups.start : groups.stop]]


def shared(
    batch: TrainingBatch, groups: range, active: list[list[int]], updates: int, rank: int, count: int
) -> tuple[list[list[int]], list[bool]]:
    """The active members of each group that are those of process `rank` of `count`, and whether a group's belong to
    several processes, which all of them find alike."""
    if count == 1:
        return active, [False] * len(active)
    total, members = batch.scored.shape
    owner = {sample: r for r, part in enumerate(split_samples(total, members, updates, count)) for sample in part}
    owners = [[owner[g * members + m] for m in some] for g, some in zip(groups, active, strict=True)]
    own = [
        [m for m, r in zip(some, ranks, strict=True) if r == rank] for some, ranks in zip(active, owners, strict=True)
    ]
    return own, [len(set(ranks)) > 1 for ranks in owners]


@dataclass(frozen=True, slots=True)
class Members:
    """B members of a micro-batch, on the device, whatever the timestep.

    names: their groups and their places in these; prompts: those of each; rows: their places in the batch's x0;
    group [B]: the group of each, counted within the update; same_group [B, B]: 1 where two members belong to one group;
    noise_keys: the draws of a timestep, of which member i takes row noise_row[i].
    """

    names: list[Member]
    prompts: list[Prompt]
    rows: list[int]
    x0: Tensor
    conditioning: Conditioning
    advantages: Tensor
    signed_weights: Tensor
    group_size: Tensor
    group: Tensor
    same_group: Tensor
    noise_keys: list[tuple[int, ...]]
    noise_row: Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B members at one timestep, with the other models' predictions by their names in `Predictions`."""

    members: Members
    x_sigma: Tensor
    target: Tensor
    sigma: Tensor
    step: PathStep | None = None
    loss_weight: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def predictions(self, velocity: Tensor) -> Predictions:
        """What the objective sees."""
        return Predictions(
            velocity=velocity,
            target=self.target,
            sigma=self.sigma,
            advantages=self.members.advantages,
            signed_weights=self.members.signed_weights,
            group_size=self.members.group_size,
            step=self.step,
            loss_weight=self.loss_weight,
            **self.others,
        )


@dataclass(frozen=True)
class Update:
    """The groups of one update, of which this process works on the members `own` (a list for each group).

    spread: for each group, whether other processes have members of it too; buckets: for each group, what those have in
    common that may share a micro-batch (`sizes.bucket`); sigmas [T]; draws: key of the noise; encode: prompts to their
    rows of conditioning; steps: the paths, for objectives that learn from them; shared_noise: one noise for
    all members of a group; active, skipped: members of all processes that take part, and that do not for their weight.
    """

    batch: TrainingBatch
    groups: range
    own: list[list[int]]
    split: list[bool]
    buckets: list[Hashable]
    sigmas: list[float]
    draws: Draws
    encode: Callable[[Sequence[Prompt]], list[Conditioning]]
    steps: PathSteps | None
    shared_noise: bool
    active: int
    skipped: int = 0

    def bundles(self, members: list[list[int]], micro_batch: int) -> Iterator[Bundle]:
        """Some of each group's members as `bundles`, each micro-batch of one bucket."""
        return bundles(members, micro_batch, self.groups.start, self.buckets)

    def is_split(self, members: list[Member]) -> bool:
        """Whether the group of the first of them is."""
        return self.split[members[0][0] - self.groups.start]

    @cached_property
    def _rows(self) -> dict[int, int]:
        """A sample's number to its place in x0."""
        return {sample: row for row, sample in enumerate(self.batch.own)}

    @cached_property
    def _conditioning(self) -> dict[int, Conditioning]:
        """The rows of the groups that this process has members of."""
        here = [g for g, members in zip(self.groups, self.own, strict=True) if members]
        return dict(zip(here, self.encode([self.batch.prompts[g] for g in here]), strict=True))

    def gather(self, members: list[Member]) -> Members:
        """What a micro-batch's members bring to every timestep, copied to the device once."""
        # The host's numbers stay Python's: a tensor of them may be one without values (`dgpo plan`).
        batch = self.batch
        g, m = [list(numbers) for numbers in zip(*members, strict=True)]
        present = sorted(set(g))
        rows = [self._rows[i * batch.scored.shape[1] + j] for i, j in members]
        places = [present.index(i) for i in g]
        group = torch.tensor(places)
        x0 = torch.stack([batch.x0[row] for row in rows])
        device = x0.device
        conditioning = Conditioning.cat([self._conditioning[i] for i in present])

        def put(values: Tensor) -> Tensor:
            return values.to(device=device, dtype=x0.dtype)

        return Members(
            names=members,
            prompts=[batch.prompts[i] for i, _ in members],
            rows=rows,
            x0=x0,
            conditioning=conditioning.rows(places),
            advantages=put(batch.advantages[g, m]),
            signed_weights=put(batch.signed_weights[g, m]),
            group_size=put(batch.scored.sum(1)[g]),
            group=torch.tensor([i - self.groups.start for i in g]).to(device),
            same_group=put(group[:, None] == group),
            noise_keys=[(i,) for i in present] if self.shared_noise else list(members),
            noise_row=(group if self.shared_noise else torch.arange(len(members))).to(device),
        )

    def at(self, members: Members, t: int) -> MicroBatch:
        """The members at timestep number t: noised, or where their paths were at that time."""
        return self._noised(members, t) if self.steps is None else self._on_path(members, t, self.steps)

    def _noised(self, members: Members, t: int) -> MicroBatch:
        x0, key = members.x0, self.draws.at("noise", t)
        rows = normal_rows([key.at(*k) for k in members.noise_keys], tuple(x0.shape[1:]), x0.device)
        noise = rows[members.noise_row].to(x0.dtype)
        sigmas = x0.new_full((len(x0),), self.sigmas[t])
        return MicroBatch(members, interpolate(x0, noise, sigmas), velocity_target(x0, noise), sigmas)

    def _on_path(self, members: Members, t: int, steps: PathSteps) -> MicroBatch:
        """The state there in the place of a noised x0."""
        step = steps.at(self.sigmas[t], members.rows)
        sigmas = step.x.new_full((len(step.x),), self.sigmas[t])
        return MicroBatch(members, step.x, velocity_from_x0(step.x, members.x0, sigmas), sigmas, step=step)

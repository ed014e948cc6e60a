"""Micro-batches of an update: members packed into batches, and noised at each timestep for the objective.

g is the number of groups, G of members per group, B of members in a micro-batch, T of timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from dgpo_core.distributed.processes import split_samples
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.paths import PathSteps
from dgpo_core.flow.velocity import interpolate, velocity_from_x0, velocity_target
from dgpo_core.transfers import to_device
from dgpo_core.types import Conditioning, PathStep, Predictions, Prompt, TrainingBatch

__all__ = ["Bundle", "Member", "Members", "MicroBatch", "Update", "active_members", "bundles", "local_members"]

Member = tuple[int, int]
Bundle = list[list[Member]]
"""Micro-batches of (group, member) that together contain all of this rank's members of their groups."""


def bundles(
    active: list[list[int]], micro_batch: int, first: int = 0, buckets: Sequence[Hashable] | None = None
) -> Iterator[Bundle]:
    """Pack the active members of groups first, first + 1, ... into micro-batches of at most `micro_batch` members.

    Whole groups of the same bucket share a micro-batch while they fit; a larger group forms its own bundle of nearly
    equal micro-batches. Groups without active members are dropped. buckets: the bucket of each group; None if all
    groups have the same.
    """
    open_batch: list[Member] = []
    open_bucket: Hashable = None
    for group, members in enumerate(active, first):
        if not members:
            continue
        pairs = [(group, member) for member in members]
        bucket = None if buckets is None else buckets[group - first]
        if open_batch and (len(open_batch) + len(pairs) > micro_batch or bucket != open_bucket):
            yield [open_batch]
            open_batch = []
        open_bucket = bucket
        if len(pairs) <= micro_batch:
            open_batch = open_batch + pairs
        else:
            parts = -(-len(pairs) // micro_batch)
            edges = [len(pairs) * i // parts for i in range(parts + 1)]
            yield [pairs[a:b] for a, b in pairwise(edges)]
    if open_batch:
        yield [open_batch]


def active_members(batch: TrainingBatch, groups: range, *, skip_zero_weights: bool) -> list[list[int]]:
    """Return the members of each group that are trained on: scored members of groups with two or more of them.

    skip_zero_weights: also drop members whose weight is zero.
    """
    use = batch.scored & (batch.scored.sum(1, keepdim=True) >= 2)
    if skip_zero_weights:
        use = use & (batch.signed_weights != 0)
    return [row.nonzero().flatten().tolist() for row in use[groups.start : groups.stop]]


def local_members(
    batch: TrainingBatch, groups: range, active: list[list[int]], updates: int, rank: int, count: int
) -> tuple[list[list[int]], list[bool]]:
    """Return the active members of each group that belong to `rank` of `count`, and whether each group is split across
    ranks (the same on all ranks)."""
    if count == 1:
        return active, [False] * len(active)
    total, members = batch.scored.shape
    owner = {sample: r for r, part in enumerate(split_samples(total, members, updates, count)) for sample in part}
    owners = [[owner[g * members + m] for m in some] for g, some in zip(groups, active, strict=True)]
    local = [
        [m for m, r in zip(some, ranks, strict=True) if r == rank] for some, ranks in zip(active, owners, strict=True)
    ]
    return local, [len(set(ranks)) > 1 for ranks in owners]


@dataclass(frozen=True, slots=True)
class Members:
    """B members of a micro-batch on the device, independent of the timestep.

    names: (group, member) of each; prompts: the prompt of each; rows: indices into the batch's x0; group [B]: group
    index within the update; same_group [B, B]: 1 where two members belong to the same group; noise_keys: keys of the
    noise rows of a timestep, of which member i uses row noise_row[i].
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
    kl_scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B members at one timestep; others: predictions of the other models by their names in `Predictions`; time_weight:
    factor of the members' losses, 1 if None."""

    members: Members
    x_sigma: Tensor
    target: Tensor
    sigma: Tensor
    step: PathStep | None = None
    loss_weight: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)
    time_weight: float | None = None

    def predictions(self, velocity: Tensor) -> Predictions:
        """Return the objective's input for the policy's `velocity` [B, ...]."""
        return Predictions(
            velocity=velocity,
            target=self.target,
            sigma=self.sigma,
            advantages=self.members.advantages,
            signed_weights=self.members.signed_weights,
            group_size=self.members.group_size,
            step=self.step,
            loss_weight=self.loss_weight,
            kl_scale=self.members.kl_scale,
            **self.others,
        )


@dataclass(frozen=True)
class Update:
    """The groups of one update and the members of each that this rank trains on.

    local_members: this rank's members of each group; split: whether each group is split across ranks; buckets: the
    bucket of each group (`sizes.bucket`), only groups with equal buckets share a micro-batch; sigmas [T]; draws: key of
    the noise; encode: prompts to their conditioning rows; steps: the paths, for objectives that learn from them;
    shared_noise: use the same noise for all members of a group; active, skipped: numbers of members over all ranks that
    are trained on, and that are skipped because their weight is zero; time_weights [T]: factors of the losses at each
    timestep, 1 if None.
    """

    batch: TrainingBatch
    groups: range
    local_members: list[list[int]]
    split: list[bool]
    buckets: list[Hashable]
    sigmas: list[float]
    draws: Draws
    encode: Callable[[Sequence[Prompt]], list[Conditioning]]
    steps: PathSteps | None
    shared_noise: bool
    active: int
    skipped: int = 0
    time_weights: list[float] | None = None

    def bundles(self, members: list[list[int]], micro_batch: int) -> Iterator[Bundle]:
        """Pack the given members of each group with `bundles`."""
        return bundles(members, micro_batch, self.groups.start, self.buckets)

    def row_counts(self, micro_batch: int) -> list[int]:
        """Return the numbers of rows that a compiled network is compiled for, in ascending order: that of whole groups,
        and the largest possible one."""
        members = self.batch.scored.shape[1]
        if members > micro_batch:
            parts = -(-members // micro_batch)
            whole = -(-members // parts)
        else:
            whole = min(len(self.groups), micro_batch // members) * members
        return sorted({whole, micro_batch})

    def is_split(self, members: list[Member]) -> bool:
        """Return whether the group of the first member is split across ranks."""
        return self.split[members[0][0] - self.groups.start]

    @cached_property
    def _rows(self) -> dict[int, int]:
        """Sample number -> index in x0."""
        return {sample: row for row, sample in enumerate(self.batch.own)}

    @cached_property
    def _conditioning(self) -> dict[int, Conditioning]:
        """Conditioning rows of the groups that this rank has members of."""
        groups = [g for g, members in zip(self.groups, self.local_members, strict=True) if members]
        return dict(zip(groups, self.encode([self.batch.prompts[g] for g in groups]), strict=True))

    def gather(self, members: list[Member]) -> Members:
        """Gather what a micro-batch needs at every timestep, copied to the device once."""
        # Index arithmetic uses Python numbers, because `dgpo plan` runs this with tensors on the meta device.
        batch = self.batch
        g, m = [list(numbers) for numbers in zip(*members, strict=True)]
        present = sorted(set(g))
        rows = [self._rows[i * batch.scored.shape[1] + j] for i, j in members]
        positions = [present.index(i) for i in g]
        group = torch.tensor(positions)
        x0 = torch.stack([batch.x0[row] for row in rows])
        device = x0.device
        conditioning = Conditioning.cat([self._conditioning[i] for i in present])

        def put(values: Tensor) -> Tensor:
            return to_device(values, device, x0.dtype)

        return Members(
            names=members,
            prompts=[batch.prompts[i] for i, _ in members],
            rows=rows,
            x0=x0,
            conditioning=conditioning.rows(positions),
            advantages=put(batch.advantages[g, m]),
            signed_weights=put(batch.signed_weights[g, m]),
            group_size=put(batch.scored.sum(1)[g]),
            group=to_device([i - self.groups.start for i in g], device),
            same_group=put(group[:, None] == group),
            noise_keys=[(i,) for i in present] if self.shared_noise else list(members),
            noise_row=to_device(positions if self.shared_noise else range(len(members)), device),
            kl_scale=None if batch.kl_scales is None else put(batch.kl_scales[g, m]),
        )

    def at(self, members: Members, t: int) -> MicroBatch:
        """Return the members at timestep index t: noised, or the states of their sampling paths at that time."""
        batch = self._noised(members, t) if self.steps is None else self._on_path(members, t, self.steps)
        return batch if self.time_weights is None else replace(batch, time_weight=self.time_weights[t])

    def _noised(self, members: Members, t: int) -> MicroBatch:
        x0, key = members.x0, self.draws.at("noise", t)
        rows = normal_rows([key.at(*k) for k in members.noise_keys], tuple(x0.shape[1:]), x0.device)
        noise = rows[members.noise_row].to(x0.dtype)
        sigmas = x0.new_full((len(x0),), self.sigmas[t])
        return MicroBatch(members, interpolate(x0, noise, sigmas), velocity_target(x0, noise), sigmas)

    def _on_path(self, members: Members, t: int, steps: PathSteps) -> MicroBatch:
        """Use the path's state at that time instead of a noised x0."""
        step = steps.at(self.sigmas[t], members.rows)
        sigmas = step.x.new_full((len(step.x),), self.sigmas[t])
        return MicroBatch(members, step.x, velocity_from_x0(step.x, members.x0, sigmas), sigmas, step=step)

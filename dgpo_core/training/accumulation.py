"""Gradient accumulation over micro-batches, timesteps and ranks.

A group that fits into a micro-batch needs one forward pass: all its members' errors are known before the backward pass.
A group of n micro-batches needs 2n - 1: n - 1 without gradient and one with gradient to complete its statistic S_g,
then n - 1 with gradient. This costs up to one more forward pass per member than accumulating the group's gradient
separately and scaling it afterwards, but it needs no second set of gradients (which matters for full fine-tuning) and
stays exact with a KL term, whose gradient is not scaled by sigmoid(S_g).

Each rank works on its own samples. The statistics of groups that are split across ranks are completed first, with one
all-reduce per update; a second all-reduce sums the gradients. There are no other collectives.

No host-device synchronization happens here, except to check whether another rank was asked to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dgpo_core.flow.preference import group_means
from dgpo_core.plugins import contract_checks
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.memory import halving
from dgpo_core.training.microbatches import Bundle, MicroBatch, Update
from dgpo_core.training.statistics import (
    local_statistics,
    member_loss,
    no_statistics,
    spans_micro_batches,
    statistic_of_bundle,
)
from dgpo_core.transfers import in_float64, to_device

if TYPE_CHECKING:
    from dgpo_core.distributed.passes import Pass
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.training.models import Models
    from dgpo_core.types import Predictions, Prompt

__all__ = ["OF_SOURCE", "Accumulated", "Accumulation", "metric_means"]

OF_SOURCE = "sigmoid of source "
"""Prefix of the metric `sigmoid` of the members of one prompt source."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What is accumulated along with the gradient.

    loss []: the update's mean loss over all ranks; metrics: name -> values of this rank's members at each timestep, in
    parts; members, skipped: numbers of members that were used, and that were skipped because their weight is zero, over
    all ranks and timesteps.
    """

    loss: Tensor
    metrics: Mapping[str, Sequence[Tensor]]
    members: int
    skipped: int


def metric_means(results: Iterable[Accumulated], processes: Processes) -> dict[str, float | None]:
    """Average each metric over all members of all ranks, with one device-to-host transfer."""
    values: dict[str, list[Tensor]] = {}
    for result in results:
        for name, parts in result.metrics.items():
            values.setdefault(name, []).extend(parts)
    means = torch.stack([in_float64(torch.cat(parts)).mean() for parts in values.values()]).tolist() if values else []
    if processes.count == 1:
        return dict(zip(values, means, strict=True))
    local = {name: (mean, sum(map(len, parts))) for (name, parts), mean in zip(values.items(), means, strict=True)}
    gathered = processes.all_gather_object(local)
    by_name = {name: [of_rank[name] for of_rank in gathered if name in of_rank] for part in gathered for name in part}
    return {name: sum(v * k for v, k in pairs) / sum(k for _, k in pairs) for name, pairs in by_name.items()}


@dataclass(slots=True)
class Accumulation:
    """Accumulates the gradient of an update in the policy's parameters.

    micro_batch: members per micro-batch, halved when memory runs out; on_message: called when that happens; progress:
    called with the number of members processed, and with a negative one if they have to be processed again.
    """

    models: Models
    processes: Processes
    micro_batch: int
    on_message: Callable[[str], None]
    progress: Callable[[int], None]
    _done: int = 0

    def add(self, update: Update, interrupt: Callable[[], None] = lambda: None) -> Accumulated:
        """Set the parameters' gradients to that of the mean loss over the update's groups and timesteps.

        interrupt: raises Interrupted if this process was asked to stop. Raises Interrupted on all ranks if any rank was
        asked to stop.
        """
        self.models.policy.forget_gradient()
        self._done = 0
        loss, metrics = torch.zeros((), device=self.models.policy.backbone.device), dict[str, list[Tensor]]()
        if update.active:  # otherwise no rank has anything to learn from
            complete = None
            if self.models.objective.needs_statistic and any(update.split):
                complete = self._complete(update, interrupt)
            (loss, metrics), stopped = self._local_phase(
                update, lambda size: self._gradient(update, complete, size, interrupt), (loss, metrics)
            )
            if self.processes.count > 1:
                loss = self._add_gradients(loss, stopped)
        times = len(update.sigmas)
        return Accumulated(loss, metrics, update.active * times, update.skipped * times)

    def _gradient(
        self, update: Update, complete: Tensor | None, size: int, interrupt: Callable[[], None]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Accumulate the gradients of this rank's members in micro-batches of `size`; return the rank's part of the
        loss and its metrics."""
        self.models.policy.forget_gradient()  # of an attempt that ran out of memory
        if self._done:
            self._processed(-self._done)
        loss = torch.zeros((), device=self.models.policy.backbone.device)
        metrics: dict[str, list[Tensor]] = {}
        bundles = list(update.bundles(update.local_members, size))
        self.models.policy.agree(lambda: [kind for bundle in bundles for kind in self._passes(update, bundle)])
        for bundle in bundles:
            parts = [update.gather(members) for members in bundle]
            for t in range(len(update.sigmas)):
                interrupt()
                batches = [self.models.at(update, part, t) for part in parts]
                known = None if complete is None else complete[t]
                first = None
                if spans_micro_batches(self.models.objective, update, bundle):
                    known, first = statistic_of_bundle(self.models, batches)
                for b in batches:
                    loss += self._backward(update, b, known, metrics, first)
                    first = None
                self._processed(sum(map(len, bundle)))
        return loss, metrics

    def _processed(self, members: int) -> None:
        self._done += members
        self.progress(members)

    def _passes(self, update: Update, bundle: Bundle) -> list[Pass]:
        """The forward passes of a bundle at all timesteps."""
        count = len(bundle)
        spans = spans_micro_batches(self.models.objective, update, bundle)
        without: list[Pass] = ["policy"] * (count - 1 if spans else 0)
        gradient: list[Pass] = ["gradient"] * count
        return [*self.models.others() * count, *without, *gradient] * len(update.sigmas)

    def _backward(
        self,
        update: Update,
        b: MicroBatch,
        known: Tensor | None,
        metrics: dict[str, list[Tensor]],
        predictions: Predictions | None,
    ) -> Tensor:
        """Run forward and backward of a micro-batch; return its part of the update's mean loss and add to `metrics`.

        predictions: of a forward pass that was run before, with its graph.
        """
        predictions = predictions or self.models.predictions(b)
        if not predictions.velocity.requires_grad:
            raise contract_checks.broken(
                self.models.policy.backbone, "the output of `velocity` does not require grad; nothing would be learned"
            )
        result = member_loss(self.models.objective, predictions, b.members, known)
        # Mean over a group's scored members, the update's groups and the timesteps.
        scaled = group_means(result.loss, b.members.group_size, len(update.groups) * len(update.sigmas))
        if b.time_weight is not None:
            scaled = scaled * b.time_weight
        if scaled.requires_grad:
            self.models.policy.backward(scaled)
        for name, values in result.metrics.items():
            metrics.setdefault(name, []).append(values)
        for source, part in _source_runs(b.members.prompts) if "sigmoid" in result.metrics else ():
            metrics.setdefault(f"{OF_SOURCE}{source}", []).append(result.metrics["sigmoid"][part])
        return scaled.detach()

    def _local_phase(self, update: Update, work: Callable[[int], T], stopped: T) -> tuple[T, bool]:
        """Run this rank's part of a phase; if memory runs out, restart it with half the micro-batch size, which is
        kept.

        Returns (result, False), or (`stopped`, True) if this rank was asked to stop and the other ranks must still be
        notified. A single process raises Interrupted at once.
        """

        def with_fixed_rows(size: int) -> T:
            with self.models.policy.rows.of(*update.row_counts(size)):
                return work(size)

        try:
            result, self.micro_batch = halving(
                with_fixed_rows,
                self.micro_batch,
                "optimizer.micro_batch",
                self.on_message,
                again=not self.models.policy.sharded,
            )
        except Interrupted:
            if self.processes.count == 1:
                raise
            result = None
        self.models.policy.finish()
        return (stopped, True) if result is None else (result, False)

    def _complete(self, update: Update, interrupt: Callable[[], None]) -> Tensor:
        """Statistics [T, g] of the groups that are split across ranks, with one all-reduce; nan for the other
        groups."""
        partial, stopped = self._local_phase(
            update, lambda size: local_statistics(self.models, update, size, interrupt),
            no_statistics(self.models, update),
        )  # fmt: skip
        not_split = ~to_device(update.split, partial.device)
        return self._reduced([partial], stopped)[0].masked_fill(not_split, torch.nan)

    def _add_gradients(self, loss: Tensor, stopped: bool) -> Tensor:
        """Sum the gradients over all ranks; return the sum of the losses."""
        # The backward passes of sharded weights have already reduced their gradients.
        parameters = [] if self.models.policy.weights_sharded else list(self.models.policy.parameters.values())
        present = to_device([p.grad is not None for p in parameters], loss.device, loss.dtype)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total, present, *sums = self._reduced([loss, present, *gradients], stopped)
        for p, gradient, has_gradient in zip(parameters, sums, present.tolist(), strict=True):
            p.grad = gradient.to(p.dtype) if has_gradient else None  # AdamW skips a parameter without a gradient
        return total

    def _reduced(self, tensors: list[Tensor], stopped: bool) -> list[Tensor]:
        """Sum tensors over all ranks, together with the stop flag; raise Interrupted on all ranks if any has set it."""
        flag = to_device([float(stopped)], tensors[0].device, tensors[0].dtype)
        *sums, stop = self.processes.all_reduce_sum([*tensors, flag])
        if bool(stop):
            raise Interrupted
        return sums


def _source_runs(prompts: Sequence[Prompt]) -> Iterator[tuple[str, slice]]:
    """Yield the source of each run of members of one source; nothing without sources. Slices need no index tensor."""
    start = 0
    for source, members in groupby(prompts, lambda prompt: prompt.source):
        stop = start + sum(1 for _ in members)
        if source:
            yield source, slice(start, stop)
        start = stop

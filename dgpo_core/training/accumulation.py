"""The gradient of an update, added up over micro-batches, timesteps and processes.

A group that fits a micro-batch is evaluated once: all its members' errors are known before backward. A group that does
not fit is gone through twice: first without gradient to complete its statistic S_g, then with gradient. That costs a
forward pass more than accumulating the group's gradient apart and scaling it afterwards, but it needs no second set of
gradients (full fine-tuning!) and stays exact with a KL term, whose gradient is not scaled by sigmoid(S_g).

With several processes each works on its own samples. The statistics of groups that are sharded across processes are
completed first, all those of an update in one reduction; a second one adds the gradients. There are no others.

Nothing here asks the device for a value, except whether another process was asked to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from dgpo_core.plugins import contract_checks
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.memory import halving
from dgpo_core.training.microbatches import Bundle, MicroBatch, Update
from dgpo_core.training.statistics import member_loss, no_statistics, statistic_of_bundle, statistics_here, twice

if TYPE_CHECKING:
    from dgpo_core.distributed.passes import Pass
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.training.models import Models

__all__ = ["Accumulated", "Accumulation", "metric_means"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What was added up while the gradient was.

    loss []: the update's mean loss, of all processes; metrics: by name the values of this process's members at each
    timestep, in parts; members, skipped: how many took part, and how many did not for their zero weight, of all
    processes, times timesteps.
    """

    loss: Tensor
    metrics: Mapping[str, Sequence[Tensor]]
    members: int
    skipped: int


def metric_means(results: Iterable[Accumulated], processes: Processes) -> dict[str, float | None]:
    """Means over all members of all processes, in one transfer from the device."""
    found: dict[str, list[Tensor]] = {}
    for one in results:
        for name, parts in one.metrics.items():
            found.setdefault(name, []).extend(parts)
    means = torch.stack([torch.cat(parts).double().mean() for parts in found.values()]).tolist() if found else []
    if processes.count == 1:
        return dict(zip(found, means, strict=True))
    here = {name: (mean, sum(map(len, parts))) for (name, parts), mean in zip(found.items(), means, strict=True)}
    all_gather_object = processes.all_gather_object(here)
    split_samples = {
        name: [there[name] for there in all_gather_object if name in there]
        for there in all_gather_object
        for name in there
    }
    return {name: sum(v * k for v, k in some) / sum(k for _, k in some) for name, some in split_samples.items()}


@dataclass(slots=True)
class Accumulation:
    """Adds the gradients of updates to the policy's parameters.

    micro_batch: members at a time, which become fewer where memory runs out; tell: hears of that; progress: told of
    members that are done.
    """

    models: Models
    processes: Processes
    micro_batch: int
    on_message: Callable[[str], None]
    progress: Callable[[int], None]

    def add(self, update: Update, interrupt: Callable[[], None] = lambda: None) -> Accumulated:
        """Make the gradient of the mean loss over an update's groups and timesteps that of the parameters.

        interrupt: raises Interrupted if this process was asked to stop. Raises Interrupted if any process was.
        """
        self.models.policy.forget_gradient()
        loss, metrics = torch.zeros((), device=self.models.policy.backbone.device), dict[str, list[Tensor]]()
        if update.active:  # else there is nothing to learn from, in any process
            complete = None
            if self.models.objective.needs_statistic and any(update.split):
                complete = self._complete(update, interrupt)
            (loss, metrics), stopped = self._here(
                lambda size: self._gradient(update, complete, size, interrupt), (loss, metrics)
            )
            if self.processes.count > 1:
                loss = self._add_gradients(loss, stopped)
        times = len(update.sigmas)
        return Accumulated(loss, metrics, update.active * times, update.skipped * times)

    def _gradient(
        self, update: Update, complete: Tensor | None, size: int, interrupt: Callable[[], None]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Gradients of this process's members, in micro-batches of `size`, their share of the loss, and the metrics."""
        self.models.policy.forget_gradient()  # what an attempt left that ran out of memory
        loss = torch.zeros((), device=self.models.policy.backbone.device)
        metrics: dict[str, list[Tensor]] = {}
        bundles = list(update.bundles(update.own, size))
        self.models.policy.agree(lambda: [one for bundle in bundles for one in self._passes(update, bundle)])
        for bundle in bundles:
            parts = [update.gather(members) for members in bundle]
            for t in range(len(update.sigmas)):
                interrupt()
                batches = [self.models.at(update, part, t) for part in parts]
                known = None if complete is None else complete[t]
                if twice(self.models.objective, update, bundle):
                    known = statistic_of_bundle(self.models, batches)
                for b in batches:
                    loss += self._backward(update, b, known, metrics)
                self.progress(sum(map(len, bundle)))
        return loss, metrics

    def _passes(self, update: Update, bundle: Bundle) -> list[Pass]:
        """Those of a bundle at all timesteps."""
        count = len(bundle)
        first: list[Pass] = ["policy"] * (count if twice(self.models.objective, update, bundle) else 0)
        last: list[Pass] = ["gradient"] * count
        return [*self.models.others() * count, *first, *last] * len(update.sigmas)

    def _backward(
        self, update: Update, b: MicroBatch, known: Tensor | None, metrics: dict[str, list[Tensor]]
    ) -> Tensor:
        """Forward and backward of a micro-batch; returns its share of the mean loss of the update, and adds to the
        metrics."""
        predictions = self.models.predictions(b)
        if not predictions.velocity.requires_grad:
            raise contract_checks.broken(
                self.models.policy.backbone, "`velocity` has no gradient, so nothing would be learned"
            )
        result = member_loss(self.models.objective, predictions, b.members, known)
        # Mean over a group's scored members, over the groups of this update and over the timesteps.
        scaled = (result.loss / b.members.group_size).sum() / (len(update.groups) * len(update.sigmas))
        if scaled.requires_grad:
            self.models.policy.backward(scaled)
        for name, values in result.metrics.items():
            metrics.setdefault(name, []).append(values)
        return scaled.detach()

    def _here(self, work: Callable[[int], T], stopped: T) -> tuple[T, bool]:
        """This process's part of a phase, begun anew with smaller micro-batches where memory runs out, which stay so
        small; or `stopped`, and True, for then the others have to be told. A single process just stops."""
        try:
            done, self.micro_batch = halving(
                work, self.micro_batch, "optimizer.micro_batch", self.on_message, again=not self.models.policy.sharded
            )
        except Interrupted:
            if self.processes.count == 1:
                raise
            done = None
        self.models.policy.finish()
        return (stopped, True) if done is None else (done, False)

    def _complete(self, update: Update, interrupt: Callable[[], None]) -> Tensor:
        """Statistics [T, g] of the groups that are sharded across processes, in one reduction; nan of the others."""
        here, stopped = self._here(
            lambda size: statistics_here(self.models, update, size, interrupt), no_statistics(self.models, update)
        )
        not_split = ~torch.tensor(update.split, device=here.device)
        return self._added([here], stopped)[0].masked_fill(not_split, torch.nan)

    def _add_gradients(self, loss: Tensor, stopped: bool) -> Tensor:
        """Give every process the sum of all processes' gradients; returns the sum of their losses."""
        # Gradients of sharded weights were added by their backward passes.
        parameters = [] if self.models.policy.weights_sharded else list(self.models.policy.parameters.values())
        known = loss.new_tensor([p.grad is not None for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total, known, *sums = self._added([loss, known, *gradients], stopped)
        for p, gradient, there in zip(parameters, sums, known.tolist(), strict=True):
            p.grad = gradient.to(p.dtype) if there else None  # AdamW leaves a parameter without a gradient alone
        return total

    def _added(self, tensors: list[Tensor], stopped: bool) -> list[Tensor]:
        """Sums over processes. Whether one was asked to stop travels along; then all of them raise Interrupted."""
        *sums, stop = self.processes.all_reduce_sum([*tensors, tensors[0].new_tensor([float(stopped)])])
        if bool(stop):
            raise Interrupted
        return sums

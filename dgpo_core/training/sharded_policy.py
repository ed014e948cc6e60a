"""The policy of a model that is sharded across ranks. Adapters are not sharded: their weights, gradients and updates
are handled as in any other run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.distributed.passes import Pass, PassSchedule
from dgpo_core.distributed.sharding import full_tensor, local, reduce_between_machines, replicas, shard_like
from dgpo_core.training.policy import ModelName, Policy
from dgpo_core.types import Conditioning

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.processes import Processes
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["ShardedPolicy"]


class ShardedPolicy(Policy):
    """A policy whose backbone was sharded by `sharding.shard`.

    Activating a model copies this rank's shards, a few gigabytes at most, because FSDP2 holds on to their storage.
    """

    sharded = True

    def __init__(
        self,
        backbone: Backbone,
        objective: ObjectiveSection,
        processes: Processes,
        *,
        blank: Callable[[], tuple[Tensor, Conditioning]],
        autocast: Callable[[], AbstractContextManager[object]],
        keep_start: bool = False,
    ) -> None:
        """blank: returns a latent [1, ...] and its conditioning for dummy passes."""
        super().__init__(backbone, objective, keep_start=keep_start)
        self.weights_sharded = backbone.adapter is None
        self._replicas = replicas(next(iter(self.parameters.values())))
        if self.weights_sharded:
            self._live = self._weights["policy"]
            self._saved_policy = [torch.empty_like(t) for t in self._live]
            self._loaded: ModelName = "policy"
        self._processes = processes
        processes.gathers = True
        self._blank = blank
        self._autocast = autocast
        self._schedule = PassSchedule(processes, self._blank_pass)

    def agree(self, passes: Callable[[], Sequence[Pass]]) -> None:
        """See Policy.agree."""
        self._schedule.agree([self._kind(kind) for kind in passes()])

    def finish(self) -> None:
        """See Policy.finish."""
        self._schedule.finish()

    def _kind(self, kind: Pass) -> Pass:
        """Return the kind of a pass that matters to other ranks: with an adapter, all models gather the same
        weights."""
        if kind == "gradient":
            return kind
        return self.available(kind) if self.weights_sharded else "policy"

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Run dummy passes until this pass is due; one with gradient is followed by its backward pass."""
        self._schedule.take("gradient" if torch.is_grad_enabled() else self._kind(self._active))
        with self._processes.exchanging():
            yield

    def _blank_pass(self, kind: Pass) -> None:
        x, conditioning = self._blank()
        gradient = kind == "gradient"
        if self.weights_sharded:
            self._point_at("policy" if kind == "gradient" else kind)
        self._tell_adapter()
        with self._processes.exchanging(), torch.set_grad_enabled(gradient), self._autocast():
            velocity = self.backbone.velocity(x, x.new_full((1,), 0.5), conditioning)
        if gradient:
            self.backward((velocity * 0).sum())
        if self.weights_sharded:
            self._point_at(self._active)

    def _local(self, tensor: Tensor) -> Tensor:
        return local(tensor)

    def backward(self, loss: Tensor) -> None:
        """See Policy.backward; runs together with the other ranks. Gradients pass between machines after the last pass
        of a phase."""
        if self._replicas > 1:
            reduce_between_machines(self.backbone, self._schedule.last_gradient)
        with self._processes.exchanging():
            super().backward(loss)

    def _point_at(self, model: ModelName) -> None:
        if not self.weights_sharded:
            super()._point_at(model)
            return
        if model == self._loaded:
            return
        with torch.no_grad():
            if self._loaded == "policy":
                torch._foreach_copy_(self._saved_policy, self._live)
            torch._foreach_copy_(self._live, self._saved_policy if model == "policy" else self._weights[model])
        self._loaded = model

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the Euclidean norm [] over the shards of all ranks."""
        norm = super().norm([local(t) for t in tensors])
        if not self.weights_sharded:
            return norm
        return (self._processes.all_reduce_sum([norm.square()])[0] / self._replicas).sqrt()

    def full_tensors(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """See Policy.full_tensors. All ranks must call this together; sharded tensors are gathered on the CPU, and are
        empty except on the main process."""
        return {
            key: full_tensor(tensor, self.parameters[name], self._processes) for key, (name, tensor) in tensors.items()
        }

    def local_shard(self, name: str, tensor: Tensor) -> Tensor:
        """See Policy.local_shard."""
        return shard_like(tensor, self.parameters[name])

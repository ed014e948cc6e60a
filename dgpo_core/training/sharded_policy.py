"""The policy of a model that is sharded over the processes of a run. An adapter is not sharded: its views, gradients
and updates are those of any other run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.distributed.passes import Pass, PassSchedule
from dgpo_core.distributed.sharding import full_tensor, local, shard_like
from dgpo_core.training.policy import ModelName, Policy
from dgpo_core.types import Conditioning

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.processes import Processes
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["ShardedPolicy"]


class ShardedPolicy(Policy):
    """A policy whose backbone was given to `sharding.shard`.

    Views of sharded weights are switched by copying this process's shards, a few gigabytes at most, because FSDP2 knows
    the shards by their storage.
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
    ) -> None:
        """blank: a latent [1, ...] and its conditioning, to make a pass with when there is nothing else to do."""
        super().__init__(backbone, objective)
        self.weights_sharded = backbone.adapter is None
        if self.weights_sharded:
            self._live = self._weights["policy"]
            self._aside = [torch.empty_like(t) for t in self._live]
            self._in_place: ModelName = "policy"
        self._processes = processes
        self._blank = blank
        self._autocast = autocast
        self._schedule = PassSchedule(processes, self._blank_pass)

    def agree(self, passes: Callable[[], Sequence[Pass]]) -> None:
        """See Policy.agree."""
        self._schedule.agree([self._kind(one) for one in passes()])

    def finish(self) -> None:
        """See Policy.finish."""
        self._schedule.finish()

    def _kind(self, one: Pass) -> Pass:
        """What other processes have to know of a pass: whatever an adapter does, the same weights are gathered."""
        if one == "gradient":
            return one
        return self.available(one) if self.weights_sharded else "policy"

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Wait for the turn of this pass. One with gradient is followed by its backward pass."""
        self._schedule.take("gradient" if torch.is_grad_enabled() else self._kind(self._active))
        with self._processes.exchanging():
            yield

    def _blank_pass(self, kind: Pass) -> None:
        x, conditioning = self._blank()
        gradient = kind == "gradient"
        if self.weights_sharded:
            self._point_at("policy" if kind == "gradient" else kind)
        with self._processes.exchanging(), torch.set_grad_enabled(gradient), self._autocast():
            velocity = self.backbone.velocity(x, x.new_full((1,), 0.5), conditioning)
        if gradient:
            self.backward((velocity * 0).sum())
        if self.weights_sharded:
            self._point_at(self._active)

    def _local(self, tensor: Tensor) -> Tensor:
        return local(tensor)

    def backward(self, loss: Tensor) -> None:
        """As any policy's, in step with the other processes."""
        with self._processes.exchanging():
            super().backward(loss)

    def _point_at(self, name: ModelName) -> None:
        if not self.weights_sharded:
            super()._point_at(name)
            return
        if name == self._in_place:
            return
        with torch.no_grad():
            if self._in_place == "policy":
                torch._foreach_copy_(self._aside, self._live)
            torch._foreach_copy_(self._live, self._aside if name == "policy" else self._weights[name])
        self._in_place = name

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Euclidean norm [] over all processes' shards."""
        norm = super().norm([local(t) for t in tensors])
        return self._processes.all_reduce_sum([norm.square()])[0].sqrt() if self.weights_sharded else norm

    def whole(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """See Policy.whole; of sharded weights by all processes together, on the CPU, empty in all but the main one."""
        return {
            key: full_tensor(tensor, self.parameters[name], self._processes) for key, (name, tensor) in tensors.items()
        }

    def share(self, name: str, tensor: Tensor) -> Tensor:
        """See Policy.share."""
        return shard_like(tensor, self.parameters[name])

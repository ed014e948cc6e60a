"""A model whose weights are spread over the processes of a run (FSDP2), for those that do not fit one card.

Each process keeps a share of every weight and gathers a block's weights while that block runs, so all of them have to
make every pass together, though they have different samples and may have different numbers of micro-batches. `Turns`
sees to that: before each pass they agree on one, and who has no such pass to make goes along with one blank sample.
An adapter is not spread: its views, gradients and updates are those of any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dgpo_core.training.policy import Policy, View
from dgpo_core.types import Conditioning

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.processes import Processes
    from dgpo_schemas.sections.training import EmaSection

__all__ = ["ShardedPolicy", "shard"]

PASSES: tuple[View, ...] = ("base", "old", "slow", "policy")
WITH_GRADIENT = len(PASSES)
"""The kinds of passes by their numbers; the smallest one that somebody wants is everybody's next one. The pass with
gradient is last, so that nobody is within another view when a backward pass has to be made."""
NONE = WITH_GRADIENT + 1


def shard(backbone: Backbone, device: torch.device, processes: Processes) -> None:
    """Spread the network of a backbone that was made on the CPU over all processes, and bring the rest to the device.

    The blocks (`Backbone.blocks`) are brought one by one, so that the whole network never is on one device.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    mesh = init_device_mesh(device.type, (processes.count,))
    for module in (*backbone.blocks(), backbone.module):
        # Resharded after each pass: between two of them a view may change the shares.
        made = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
        assert isinstance(made, FSDPModule)
        made.set_gradient_divide_factor(1.0)  # each process has its own part of the mean: gradients are added
        made.set_force_sum_reduction_for_comms(True)  # as a plain sum, which gloo can do too
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    for part in backbone.parts().values():
        if part is not backbone.module:
            part.to(device)
    backbone.device = device


class ShardedPolicy(Policy):
    """A policy whose backbone was given to `shard`.

    Views of spread weights are switched by copying this process's shares, a few gigabytes at most, because FSDP2 knows
    the shares by their storage.
    """

    sharded = True

    def __init__(
        self,
        backbone: Backbone,
        ema: EmaSection,
        processes: Processes,
        *,
        blank: Callable[[], tuple[Tensor, Conditioning]],
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """blank: a latent [1, ...] and its conditioning, to make a pass with when there is nothing else to do."""
        super().__init__(backbone, ema)
        self.spread = backbone.adapter is None
        if self.spread:
            self._live = self._weights["policy"]
            self._aside = [torch.empty_like(t) for t in self._live]
            self._in_place: View = "policy"
        self._turns = _Turns(self, processes, blank, autocast)
        processes.before_meeting = self._turns.end
        self._processes = processes

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Wait for this view's turn. A pass with gradient is followed by its backward pass."""
        view = self._view if self.spread else "policy"  # whatever an adapter does, the same weights are gathered
        self._turns.take(WITH_GRADIENT if torch.is_grad_enabled() else PASSES.index(view))
        with self._processes.exchanging():
            yield

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def backward(self, loss: Tensor) -> None:
        """As any policy's, in step with the other processes."""
        with self._processes.exchanging():
            super().backward(loss)

    def put(self, name: View) -> None:
        """Have another view's shares in place for somebody else's pass; `put_back` ends that."""
        if self.spread:
            self._point_at(name)

    def put_back(self) -> None:
        """Have this process's own view in place again."""
        self.put(self._view)

    def _point_at(self, name: View) -> None:
        if not self.spread:
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
        """Euclidean norm [] over all processes' shares."""
        norm = super().norm([self._local(t) for t in tensors])
        return self._processes.add([norm.square()])[0].sqrt() if self.spread else norm

    def whole(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """See Policy.whole; of spread weights by all processes together, on the CPU, empty in all but the main one."""
        found = {}
        for key, (name, tensor) in tensors.items():
            like = self.parameters[name]
            if isinstance(like, DTensor) and tensor.dim():
                if not isinstance(tensor, DTensor):
                    tensor = DTensor.from_local(
                        tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                    )
                with self._processes.exchanging():
                    full = tensor.full_tensor()
                tensor = full.cpu() if self._processes.main else full.new_empty(0, device="cpu")
            found[key] = tensor
        return found

    def share(self, name: str, tensor: Tensor) -> Tensor:
        """See Policy.share."""
        like = self.parameters[name]
        if isinstance(like, DTensor) and tensor.dim():
            return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return super().share(name, tensor)


class _Turns:
    """Whose pass is made now."""

    def __init__(
        self,
        policy: ShardedPolicy,
        processes: Processes,
        blank: Callable[[], tuple[Tensor, Conditioning]],
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._policy = policy
        self._processes = processes
        self._blank = blank
        self._autocast = autocast

    def take(self, kind: int) -> None:
        """Go along with others until a pass of this kind is everybody's next one."""
        while (turn := self._processes.least(kind)) != kind:
            self._go_along(turn)

    def end(self) -> None:
        """Go along until nobody has a pass to make."""
        while (turn := self._processes.least(NONE)) != NONE:
            self._go_along(turn)

    def _go_along(self, turn: int) -> None:
        x, conditioning = self._blank()
        gradient = turn == WITH_GRADIENT
        self._policy.put("policy" if gradient else PASSES[turn])
        with self._processes.exchanging(), torch.set_grad_enabled(gradient), self._autocast():
            velocity = self._policy.backbone.velocity(x, x.new_full((1,), 0.5), conditioning)
        if gradient:
            self._policy.backward((velocity * 0).sum())
        self._policy.put_back()

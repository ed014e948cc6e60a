"""A model whose weights are sharded over the processes of a run (FSDP2), for those that do not fit one card.

Each process keeps a shard of every weight and gathers a block's weights while that block runs, so all of them have to
make every pass together (`passes`). An adapter is not sharded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.processes import Processes

__all__ = ["full_tensor", "local", "shard", "shard_like"]


def shard(backbone: Backbone, device: torch.device, processes: Processes) -> None:
    """Shard the network of a backbone that was made on the CPU over all processes, and bring the rest to the device.

    The blocks (`Backbone.blocks`) are brought one by one, so that the whole network never is on one device.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    mesh = init_device_mesh(device.type, (processes.count,))
    for module in (*backbone.blocks(), backbone.module):
        # Resharded after each pass: between two of them a view may change the shards.
        made = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
        assert isinstance(made, FSDPModule)
        made.set_gradient_divide_factor(1.0)  # each process has its own part of the mean: gradients are added
        made.set_force_sum_reduction_for_comms(True)  # as a plain sum, which gloo can do too
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    for component in backbone.components().values():
        if component is not backbone.module:
            component.to(device)
    backbone.device = device


def local(tensor: Tensor) -> Tensor:
    """This process's shard; of a tensor that is not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor, like: Tensor, processes: Processes) -> Tensor:
    """All of a tensor, or local shard, that is made like the weight `like`. Of a sharded one by all processes together:
    on the CPU, empty in all but the main one."""
    if not isinstance(like, DTensor) or not tensor.dim():
        return tensor
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    with processes.exchanging():
        full: Tensor = tensor.full_tensor()
    return full.cpu() if processes.main else full.new_empty(0, device="cpu")


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, which every process has, on the device of the weight `like`, and sharded if that is."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor) or not tensor.dim():
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

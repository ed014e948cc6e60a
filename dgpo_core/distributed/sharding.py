"""Shard the weights of a model over all ranks with FSDP2, for models that do not fit on one GPU.

Each rank keeps a shard of every weight and all-gathers a block's weights while the block runs, so all ranks must run
every forward pass together (`passes`). LoRA adapters are not sharded.
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
    """Shard the network of a backbone on the CPU over all ranks, and move its other components to the device.

    The blocks (`Backbone.blocks`) are moved one at a time, so that the full network is never on one device.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    mesh = init_device_mesh(device.type, (processes.count,))
    for module in (*backbone.blocks(), backbone.module):
        # Resharded after each pass, because another model may be activated between passes.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)  # losses are already scaled to the global mean, so gradients are summed
        sharded.set_force_sum_reduction_for_comms(True)  # a plain sum, which gloo supports too
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    for component in backbone.components().values():
        if component is not backbone.module:
            component.to(device)
    backbone.device = device


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor, like: Tensor, processes: Processes) -> Tensor:
    """Gather the full tensor of a tensor or local shard that is laid out like the weight `like`.

    If `like` is sharded, all ranks must call this together; the result is on the CPU, and empty except on the main
    process.
    """
    if not isinstance(like, DTensor) or not tensor.dim():
        return tensor
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    with processes.exchanging():
        full: Tensor = tensor.full_tensor()
    return full.cpu() if processes.main else full.new_empty(0, device="cpu")


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a full tensor, which all ranks have, to the device of the weight `like`, sharded if `like` is."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor) or not tensor.dim():
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

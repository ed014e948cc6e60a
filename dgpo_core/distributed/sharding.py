"""Shard the weights of a model over ranks with FSDP2, for models that do not fit on one GPU.

Each rank keeps a shard of every weight and all-gathers a block's weights while the block runs, so all ranks must run
every forward pass together (`passes`). LoRA adapters are not sharded.

Weights are sharded over all ranks, or (HSDP) over those of each machine, and every machine has all of them: weights are
then gathered within machines, over their fast links, and only gradients of trained weights pass between machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_core.distributed.processes import Processes

__all__ = ["full_tensor", "gather_dtype", "local", "reduce_between_machines", "replicas", "shard", "shard_like"]


def gather_dtype(backbone: Backbone, *, bf16: bool) -> torch.dtype | None:
    """Return the dtype in which weights are gathered, and their gradients computed; None is their own.

    bf16: with autocast, which rounds float32 weights to bfloat16 at each use. Gathering them in bfloat16 takes half the
    memory and communication, but also rounds the weights that autocast would use in float32 (norms, embeddings). Models
    with weights in bfloat16 keep their dtypes, of which some weights are float32 on purpose; DoRA reads exact norms.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    weights = [p for p in backbone.module.parameters() if p not in adapter and p.is_floating_point()]
    dora = backbone.adapter is not None and backbone.section.lora.dora
    return torch.bfloat16 if bf16 and not dora and all(p.dtype == torch.float32 for p in weights) else None


def shard(
    backbone: Backbone, device: torch.device, processes: Processes, *, within_machines: bool = False, bf16: bool = False
) -> None:
    """Shard the network of a backbone on the CPU over ranks, and move its other components to the device.

    The blocks (`Backbone.blocks`) are moved one at a time, so that the full network is never on one device. Gradients
    are summed over all ranks in float32.

    within_machines: over the ranks of each machine; bf16: see `gather_dtype`.
    """
    adapter = set() if backbone.adapter is None else set(backbone.trainable().values())
    mesh = _mesh(device, processes, within_machines=within_machines)
    # Activations have the dtypes that autocast gives them: casting inputs would round the model's times.
    dtype = gather_dtype(backbone, bf16=bf16)
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32, cast_forward_inputs=False)
    for module in (*backbone.blocks(), backbone.module):
        # Resharded after each pass, because another model may be activated between passes.
        sharded = fully_shard(
            module, mesh=mesh, reshard_after_forward=True, mp_policy=precision, ignored_params=adapter
        )
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)  # losses are already scaled to the global mean, so gradients are summed
        sharded.set_force_sum_reduction_for_comms(True)  # a plain sum, which gloo supports too
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    for component in backbone.components().values():
        if component is not backbone.module:
            component.to(device)
    backbone.device = device


def _mesh(device: torch.device, processes: Processes, *, within_machines: bool) -> DeviceMesh:
    """Return the mesh [ranks], or [machines, ranks of a machine]."""
    local = processes.ranks_per_machine() if within_machines else processes.count
    if local == processes.count:
        return init_device_mesh(device.type, (processes.count,))
    ranks = torch.arange(processes.count).view(-1, local)
    groups = [processes.subgroup(ranks.T.tolist()), processes.subgroup(ranks.tolist())]
    return DeviceMesh.from_group(groups, device.type, mesh=ranks, mesh_dim_names=("machines", "ranks"))


def replicas(weight: Tensor) -> int:
    """Return how many ranks have the same shard of a weight."""
    return weight.device_mesh.size(0) if isinstance(weight, DTensor) and weight.device_mesh.ndim > 1 else 1


def reduce_between_machines(backbone: Backbone, now: bool) -> None:
    """Let the next backward pass sum gradients between machines, or (`now` False) only within each of them: the sums of
    several passes then pass the network once."""
    assert isinstance(backbone.module, FSDPModule)
    backbone.module.set_requires_all_reduce(now)


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

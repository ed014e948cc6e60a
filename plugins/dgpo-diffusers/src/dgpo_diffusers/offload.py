"""Text encoders in host memory, of which a block or a layer at a time is on the device: diffusers' group offloading.

It is for modules that run without gradient only: its hooks take weights off the device before a backward pass reads
them, and move those of an adapter to other tensors than the optimizer's. Denoisers are therefore not offloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from dgpo_core.errors import UserError
from dgpo_diffusers.libraries import quiet

if TYPE_CHECKING:
    from dgpo_diffusers.options import DiffusersOptions

__all__ = ["check_offload", "offload"]

WHERE = "backbone.options.group_offload"


def check_offload(options: DiffusersOptions, device: torch.device) -> None:
    """Raise UserError, before anything is read, for a device without memory of its own and what contradicts it."""
    if options.group_offload is None or device.type == "meta":
        return
    if device.type == "cpu":
        raise UserError(
            f"{WHERE}: this run is on the CPU (or its model is sharded by run.shard), where nothing can be offloaded; "
            "leave it out"
        )
    if options.offload_text:
        raise UserError(f"{WHERE}: offload_text moves text encoders as a whole; leave one of the two out")
    quantize = options.quantize
    if quantize is not None and quantize.method.startswith("bnb") and "text_encoders" in quantize.components:
        raise UserError(
            f"{WHERE}: {quantize.method} keeps text encoders on the device; use torchao-int8, or set "
            "backbone.options.quantize.components to [denoiser]"
        )


def offload(
    modules: Iterable[nn.Module], level: Literal["block", "leaf"], device: torch.device, *, home: torch.device
) -> None:
    """Install the hooks on modules that run without gradient: their weights stay on `home` (the CPU) in between.

    With blocks, what is outside of the lists of blocks, such as embeddings, is moved to `device` once.
    """
    with quiet():
        from diffusers.hooks import apply_group_offloading
    for module in modules:
        if level == "leaf":
            apply_group_offloading(module, onload_device=device, offload_device=home, offload_type="leaf_level")
            continue
        # diffusers looks for lists among the direct children, of which transformers' models have none.
        owners = list(_owners(module))
        inside = {id(p) for owner in owners for p in owner.parameters()}
        for owner in owners:
            apply_group_offloading(
                owner, onload_device=device, offload_device=home, offload_type="block_level", num_blocks_per_group=1
            )
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(device)


def _owners(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules with a list of blocks among their children."""
    if any(isinstance(child, nn.ModuleList) for child in module.children()):
        yield module
        return
    for child in module.children():
        yield from _owners(child)

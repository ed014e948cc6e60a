"""Text encoders in host memory, of which a block or a layer at a time is on the device: diffusers' group offloading.

It is for modules that run without gradient only: its hooks take weights off the device before a backward pass reads
them, and move those of an adapter to other tensors than the optimizer's. Denoisers are therefore not offloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_diffusers.libraries import quiet
from dgpo_diffusers.options import OFFLOADED_ON_MPS, ON_CPU

if TYPE_CHECKING:
    from dgpo_diffusers.options import DiffusersOptions

__all__ = ["check_offload", "offload", "resident_bytes"]

WHERE = "backbone.options.group_offload"
BLOCKS = (nn.ModuleList, nn.Sequential)
"""Children whose members diffusers moves one at a time."""


def check_offload(options: DiffusersOptions, device: torch.device) -> None:
    """Raise UserError, before anything is read, for a device without memory of its own."""
    if options.group_offload is not None and device.type == "cpu":
        raise UserError(f"{WHERE}: {ON_CPU}")
    if options.group_offload is not None and device.type == "mps":
        raise UserError(f"{WHERE}: {OFFLOADED_ON_MPS}")


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
        for owner in _owners(module):
            apply_group_offloading(
                owner, onload_device=device, offload_device=home, offload_type="block_level", num_blocks_per_group=1
            )
        for tensor in _outside(module, _owners(module)):
            tensor.data = tensor.data.to(device)


def resident_bytes(
    modules: Iterable[nn.Module], level: Literal["block", "leaf"], size: Callable[[Tensor], int]
) -> tuple[int, int]:
    """Return the bytes that offloaded modules, which run one after the other, take on the device all the time, and the
    most that they take in addition while they run. size: returns the bytes of a parameter or buffer."""
    staying, most = 0, 0
    for module in modules:
        if level == "leaf":
            most = max(most, _of_leaves(module, size))
            continue
        staying += sum(map(size, _outside(module, _owners(module))))
        for owner in _owners(module):
            # While its blocks run one by one, what else the owner has is on the device.
            blocks = [block for child in owner.children() if isinstance(child, BLOCKS) for block in child]
            largest = max((sum(map(size, _tensors(block))) for block in blocks), default=0)
            most = max(most, sum(map(size, _outside(owner, blocks))) + largest)
    return staying, most


def _of_leaves(module: nn.Module, size: Callable[[Tensor], int]) -> int:
    """Return the most bytes on the device while a module runs: its own tensors, and one of its children."""
    from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS

    if isinstance(module, _GO_LC_SUPPORTED_PYTORCH_LAYERS):
        return sum(map(size, _tensors(module)))
    own = sum(map(size, (*module.parameters(recurse=False), *module.buffers(recurse=False))))
    return own + max((_of_leaves(child, size) for child in module.children()), default=0)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _outside(module: nn.Module, inner: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of a module that none of the inner modules has."""
    inside = {id(tensor) for one in inner for tensor in _tensors(one)}
    return [tensor for tensor in _tensors(module) if id(tensor) not in inside]


def _owners(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules with a list of blocks among their children."""
    if any(isinstance(child, nn.ModuleList) for child in module.children()):
        yield module
        return
    for child in module.children():
        yield from _owners(child)

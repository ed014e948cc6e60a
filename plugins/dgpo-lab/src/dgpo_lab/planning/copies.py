"""Copies between host and device, and whether the host waits for them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Copy", "Pinned", "copy_of"]

Direction = Literal["to device", "to host"]
READS = frozenset(
    {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "repeat_interleave"}
)
"""Operators whose result, or its size, is a value that the host waits for."""
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
"""Operators that copy indices on the host to the device."""
OURS = ("dgpo_", "benchmarks", "diffusers", "transformers", "peft", "tests", "experiments")
"""Packages in which a copy is looked for; what called torch from there is its place."""
ITSELF = "dgpo_lab.planning"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy, or a value that is read.

    name: the operator; place: the module and function that asked for it; blocking: whether the host waits for the
    device; within: whether it is part of an operator that also launches a kernel.
    """

    direction: Direction
    name: str
    place: str
    blocking: bool
    within: bool = False


class Pinned:
    """The tensors in pinned memory, which an imitation has to remember."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Note that a tensor on the host is in pinned memory."""
        storage = tensor.untyped_storage()
        self._storages.add(storage._cdata)
        weakref.finalize(storage, self._storages.discard, storage._cdata)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


def copy_of(
    function: Any, args: Any, kwargs: Any, given: Sequence[Tensor], place: torch.device, pinned: Pinned
) -> Copy | None:
    """Return the copy that a call of an operator makes; None if it stays on one device.

    given: the tensors among its arguments; place: the device of its outputs. `non_blocking` keeps the host from waiting
    except for a copy to pageable memory. Raises RuntimeError, as CUDA does, if an operator mixes tensors of host and
    device that are not scalars.
    """
    on_device = [t for t in given if t.device.type == "cuda"]
    if not on_device and place.type != "cuda":
        return None
    name = function._overloadpacket.__name__
    if name in READS and on_device and kwargs.get("output_size") is None:
        return Copy("to host", name, _place(), blocking=True)
    on_host = [t for t in given if t.device.type == "cpu" and (t.dim() or not on_device)]
    if name in ("_to_copy", "copy_"):
        source = args[1] if name == "copy_" else args[0]
        if source.device.type == place.type or place.type == "meta":
            return None
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        waits |= name == "copy_" and place.type == "cpu" and args[0] not in pinned
        return Copy("to device" if place.type == "cuda" else "to host", name, _place(), blocking=waits)
    if not on_host or not on_device:
        return None
    if name in INDEXING and on_device[0] is args[0]:
        return Copy("to device", f"{name} by a tensor on the host", _place(), blocking=True, within=True)
    shapes = ", ".join(f"{t.device.type} {tuple(t.shape)}" for t in given)
    raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {shapes}")


def _place() -> str:
    """Return the innermost function of a package that is known, as `package.module function`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(OURS) and not module.startswith(ITSELF):
            return f"{module} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "unknown"

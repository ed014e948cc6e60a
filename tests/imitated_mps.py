"""MPS's rules on a machine without MPS.

Inside `imitated()`, tensors can be created on and moved to the device "mps:0". They have values, which the CPU
computes, so that a run there can be compared with one on the CPU. What torch refuses on MPS is refused here: float64,
tensors of two devices in one operation, and generators of the CPU for its tensors. Only the thread that entered the
context sees the device: another one that touched it would be told that its tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["MPS", "available", "imitated"]

MPS = torch.device("mps", 0)
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 "
    "instead."
)
TABLES = {
    Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_, Tensor.data.__set__, Tensor.grad.__set__,
    torch._has_compatible_shallow_copy_type,
}  # fmt: skip
"""Functions whose arguments may be on two devices."""
STATE: dict[str, Any] = {
    "empty_cache": lambda: None, "synchronize": lambda: None, "driver_allocated_memory": lambda: 2**20,
    "get_rng_state": lambda: torch.zeros(1), "set_rng_state": lambda state: None, "manual_seed": lambda seed: None,
}  # fmt: skip
"""Functions of torch.mps."""


class _Device(TorchFunctionMode):
    """Knows the memory of the device, and calls torch's functions with the CPU in its place.

    The memory is kept to the end, so that no other tensor gets the same address.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: dict[int, Any] = {}
        self._backward = False

    def has(self, value: object) -> bool:
        return isinstance(value, Tensor) and not value.is_meta and value.untyped_storage()._cdata in self._memory

    def _put(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_meta:
            if value.dtype in (torch.float64, torch.complex128):
                raise TypeError(NO_FLOAT64)
            storage = value.untyped_storage()
            self._memory[storage._cdata] = storage
        return value

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:
            return MPS if self.has(args[0]) else function(*args)
        if function == Tensor.is_mps.__get__:
            return self.has(args[0])
        if function is Tensor.numpy and self.has(args[0]):
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        if function is Tensor.cpu:
            return self._moved(args[0], function(*args, **kwargs), torch.device("cpu"))
        if function is Tensor.to:
            return self._to(args, kwargs)
        if function is Tensor.backward:
            return self._backwards(*args, **kwargs)
        return self._call(function, args, kwargs)

    def _backwards(self, tensor: Tensor, gradient: Any = None, **kwargs: Any) -> None:
        """Gradients are made in C++, which does not say where they are, nor asks this mode there."""
        self._backward = True
        try:
            with self:
                torch.autograd.backward(tensor, gradient, **kwargs)
        finally:
            self._backward = False

    def _to(self, args: Any, kwargs: Any) -> Tensor:
        place = MPS if self.has(args[0]) else args[0].device
        for value in (*args[1:], *kwargs.values()):
            if isinstance(value, torch.device | str):
                place = torch.device(value)
            elif isinstance(value, Tensor):
                place = MPS if self.has(value) else value.device
        args, kwargs = tree_map(_on_cpu, (args, kwargs))
        return self._moved(args[0], Tensor.to(*args, **kwargs), place)

    def _moved(self, before: Tensor, after: Tensor, place: torch.device) -> Tensor:
        there = place.type == "mps"
        if self.has(before) != there and not after.is_meta:
            shared = after.untyped_storage()._cdata == before.untyped_storage()._cdata
            after = after.clone() if shared else after
        return self._put(after) if there else after

    def _call(self, function: Any, args: Any, kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [value for value in leaves if isinstance(value, Tensor)]
        there = any(map(self.has, tensors))
        elsewhere = [t for t in tensors if t.dim() and not t.is_meta and not self.has(t)]
        if there and elsewhere and function not in TABLES and not self._backward:
            raise RuntimeError(f"{function}: expected all tensors to be on the same device, found mps:0 and cpu")
        asked = kwargs.get("device")
        if asked is not None:
            there = torch.device(asked).type == "mps"
        if there and any(isinstance(value, torch.Generator) for value in leaves):
            raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
        out = function(*args, **tree_map(_on_cpu, kwargs))
        return tree_map(self._put, out) if there else out


def _on_cpu(value: Any) -> Any:
    named = isinstance(value, str) and value.partition(":")[0] == "mps"
    return torch.device("cpu") if named or (isinstance(value, torch.device) and value.type == "mps") else value


@contextmanager
def available() -> Iterator[None]:
    """Context in which torch says that MPS is built and available, and nothing else."""
    with ExitStack() as stack:
        for name in ("is_built", "is_available"):
            stack.enter_context(patch.object(torch.backends.mps, name, lambda: True))
        stack.enter_context(patch.object(torch.backends.mps, "get_name", lambda: "Apple M3"))
        for name, value in STATE.items():
            stack.enter_context(patch.object(torch.mps, name, value))
        yield


@contextmanager
def imitated() -> Iterator[None]:
    """Context in which tensors can be on MPS."""
    with _Device():
        yield

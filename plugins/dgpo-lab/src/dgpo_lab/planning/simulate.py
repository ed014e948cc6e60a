"""A model's steps without values: operations counted by torch, memory by following every tensor's life.

The sketch of a backbone (`Backbone.sketch`) runs on fake tensors, which have a shape, a type and a device, and go
through the same bookkeeping as real ones: what eager PyTorch would keep for the backward pass, and free when, is known
exactly. What is not known is what an allocator loses to fragments, and what kernels use as workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Cost", "cost", "faked", "operations", "peak_bytes"]


class Cost:
    """Floating-point operations of a sample, and peak bytes as base + per_sample * B."""

    def __init__(self, operations: float, base: float, per_sample: float) -> None:
        self.operations, self.base, self.per_sample = operations, base, per_sample

    def bytes(self, samples: int) -> float:
        """Peak above what is held anyway, of a micro-batch."""
        return self.base + self.per_sample * samples


@contextmanager
def faked(*modules: nn.Module) -> Iterator[None]:
    """Modules on the meta device as if they were on the CPU, where mixed precision can be entered, without values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (inner for outer in modules for inner in outer.modules()):
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(
                        torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad
                    )
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
        yield


class _Lives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors made inside that are alive, now and at most."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._sizes: dict[int, int] = dict.fromkeys(held, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_bytes(step: Callable[[], object], module: nn.Module) -> int:
    """Most bytes that tensors made in `step` have at one time; the module's own weights are not among them."""
    held = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    lives = _Lives(held)
    with lives:
        step()
    for parameter in module.parameters():
        parameter.grad = None
    return lives.peak


def operations(step: Callable[[], object], module: nn.Module) -> int:
    """Floating-point operations of `step`: two for each multiplication of a matrix product or a convolution."""
    # Attention as two matrix products, which are counted; a fused kernel does the same operations.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    for parameter in module.parameters():
        parameter.grad = None
    return int(counter.get_total_flops())


def cost(step: Callable[[int], object], module: nn.Module) -> Cost:
    """Of a step that takes a number of samples: peak bytes are linear in it, so two sizes tell all of them."""
    one, two = (peak_bytes(lambda size=size: step(size), module) for size in (1, 2))  # type: ignore[misc]
    return Cost(operations(lambda: step(1), module), 2 * one - two, two - one)

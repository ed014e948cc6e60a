"""What an operator of torch costs on a GPU: kernels, operations and bytes.

The cost model is frozen, so that changes of the project can be compared by it. Every operator that computes is one
kernel; views, allocations and reshapes are none. A kernel reads its inputs once and writes its outputs once; elements
that a broadcast repeats are read once. Caches, fusion and the several launches of a reduction are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from dgpo_lab.planning.shapes import tensors_of

__all__ = ["Kernel", "Kind", "is_view", "kernels_of", "model_operations"]

Kind = Literal["gemm", "attention", "convolution", "elementwise"]
NO_KERNEL = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "detach", "detach_", "device", "empty", "empty_like", "empty_strided",
    "is_same_size", "lift", "lift_fresh", "lift_fresh_copy", "new_empty", "new_empty_strided", "record_stream",
    "resize_", "set_", "sym_size", "_local_scalar_dense", "is_pinned", "_pin_memory", "_assert_async",
})  # fmt: skip
"""Operators without a kernel on the device, besides views."""
WRITE_ONLY = frozenset({"fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"})
"""In-place operators that do not read what they write."""
GATHERS = frozenset({"index", "index_select", "embedding", "gather"})
"""Operators that read as many elements of their first input as they write."""
IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm, torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}
"""In-place matrix products, and those that torch has a formula for."""
ATTENTION = "attention"
RECOMPUTED = 2.5
"""Operations of attention's fused backward kernels over those of the forward kernel: five matrix products over two
(Dao, arXiv 2307.08691). The model's own operations are four over two."""
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Tensors that one launch of a `_foreach_` operator takes, by the number of its tensor lists
(ATen/native/cuda/MultiTensorApply.cuh)."""
CHUNKS_A_LAUNCH, CHUNK = 320, 65536
"""Chunks of elements that one launch takes, and elements of a chunk (same source)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel launch.

    name: the operator; for casts with its dtypes; precision: bfloat16, float16, tf32, float32, ... of its inputs;
    operations: floating-point operations that it executes, 0 for elementwise ones; bytes: read and written.
    """

    name: str
    kind: Kind
    precision: str
    operations: float
    bytes: int


def is_view(function: Any) -> bool:
    """Return whether an operator returns a view of its input."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)


def kernels_of(function: Any, args: Any, kwargs: Any, out: Any) -> list[Kernel]:
    """Return the kernels that a call of an operator launches; empty for views and allocations."""
    name = function._overloadpacket.__name__
    if name in NO_KERNEL or is_view(function):
        return []
    inputs = list(tensors_of((*args, *kwargs.values())))
    outputs = list(tensors_of(out))
    if name.startswith(("_foreach_", "_fused_adam", "_amp_foreach_")):
        return _multi_tensor(name, args, inputs, outputs)
    operations = _operations(function, args, kwargs, out)
    kind = _kind(name, operations)
    read_and_written = _bytes(name, inputs, outputs)
    if not read_and_written:
        return []
    return [Kernel(_label(name, inputs, outputs), kind, _precision(inputs or outputs, kind), operations,
                   read_and_written)]  # fmt: skip


def model_operations(function: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the operations of a call as the model defines them: two per multiplication of a matrix product or a
    convolution.

    Attention counts as two matrix products, and four in the backward pass, regardless of recomputation in the kernel.
    """
    packet = function._overloadpacket
    if ATTENTION in packet.__name__:
        return _attention(packet.__name__, args) * (2 if "backward" in packet.__name__ else 1)
    formula: Callable[..., int] | None = flop_registry.get(IN_PLACE.get(packet, packet))
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _operations(function: Any, args: Any, kwargs: Any, out: Any) -> float:
    name = function._overloadpacket.__name__
    if ATTENTION in name:
        return _attention(name, args) * (RECOMPUTED if "backward" in name else 1)
    return model_operations(function, args, kwargs, out)


def _attention(name: str, args: Any) -> int:
    """Return the operations of the two matrix products of attention, forward."""
    query, key, value = args[1:4] if "backward" in name else args[:3]
    rows: int = math.prod(query.shape[:3])  # also of grouped queries
    return int(2 * rows * key.shape[2] * (query.shape[3] + value.shape[3]))


def _kind(name: str, operations: float) -> Kind:
    if ATTENTION in name:
        return "attention"
    if "convolution" in name:
        return "convolution"
    return "gemm" if operations else "elementwise"


def _precision(tensors: list[Tensor], kind: Kind) -> str:
    """Return the precision of a kernel's arithmetic: its first floating-point input's, or TF32 where it is allowed."""
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    backend = torch.backends.cudnn if kind == "convolution" else torch.backends.cuda.matmul
    if dtype == torch.float32 and kind in ("gemm", "convolution") and backend.allow_tf32:
        return "tf32"
    return str(dtype).removeprefix("torch.")


def _label(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> str:
    if name not in ("_to_copy", "copy_") or not inputs or not outputs or inputs[-1].dtype == outputs[0].dtype:
        return name
    source, target = (str(t.dtype).removeprefix("torch.") for t in (inputs[-1], outputs[0]))
    return f"{name} {source} to {target}"


def _bytes(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    written = sum(t.numel() * t.element_size() for t in outputs)
    if name in GATHERS:
        return 2 * written
    if name in WRITE_ONLY:
        return written
    if name == "copy_":
        return written + sum(map(_read, inputs[1:]))
    return written + sum(map(_read, inputs))


def _read(tensor: Tensor) -> int:
    """Return the bytes of a tensor, with elements that an expanded dimension repeats counted once."""
    elements = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return elements * tensor.element_size()


def _multi_tensor(name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> list[Kernel]:
    """Return the launches of an operator on lists of tensors, which takes a limited number of them at a time."""
    lists = [value for value in args if isinstance(value, list | tuple) and any(isinstance(t, Tensor) for t in value)]
    of_outputs = 0 if name.endswith("_") or not outputs else 1
    tensors = lists[0] if lists else []
    limit = TENSORS_A_LAUNCH[min(max(len(lists) + of_outputs, 1), 5)]
    chunks = sum(-(-t.numel() // CHUNK) for t in tensors)
    count = max(-(-len(tensors) // limit), -(-chunks // CHUNKS_A_LAUNCH), 1)
    total = _bytes(name, inputs, outputs)
    return [Kernel(name, "elementwise", _precision(inputs, "elementwise"), 0, total // count)] * count

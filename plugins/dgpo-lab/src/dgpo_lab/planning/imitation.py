"""CUDA's rules on a machine without CUDA.

Inside `imitated()`, torch believes that there is a GPU of compute capability 9.0: autocast works for CUDA, tensors may
be created there (a Meter must be active to give them a shape), attention chooses CUDA's kernels, and backward passes
run on the calling thread. Nothing is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dgpo_lab.planning.backward import walk
from dgpo_lab.planning.shapes import Shape

__all__ = ["CAPABILITY", "imitated"]

CAPABILITY = (9, 0)
"""Compute capability of the imitated GPU: Hopper."""
LARGEST_HEAD = 256
"""Largest size of a head for flash attention."""
NAME = "imitated GPU"


class _Generator(torch.Generator):
    """A generator on the host, whatever device is asked for: there are no values to draw on the device."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


class _Stream:
    """A stream or an event, which does nothing."""

    cuda_stream = stream_id = device_index = 0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def query(self) -> bool:
        """Return True: nothing is queued."""
        return True

    def elapsed_time(self, end: Any) -> float:
        """Return 0."""
        return 0.0

    def record_event(self, event: Any = None) -> Any:
        """Return the event."""
        return event or _Stream()

    def _nothing(self, *arguments: Any, **keywords: Any) -> None:
        pass

    record = wait = wait_event = wait_stream = synchronize = _nothing


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *arguments, **keywords: value


IMITATIONS: dict[str, Any] = {
    "is_available": _returning(True),
    "is_bf16_supported": _returning(True),
    "is_current_stream_capturing": _returning(False),
    "device_count": _returning(1),
    "current_device": _returning(0),
    "get_device_capability": _returning(CAPABILITY),
    "get_device_name": _returning(NAME),
    "synchronize": _returning(None),
    "empty_cache": _returning(None),
    "max_memory_allocated": _returning(0),
    "memory_allocated": _returning(0),
    "reset_peak_memory_stats": _returning(None),
    "get_rng_state": _returning(None),
    "set_rng_state": _returning(None),
    "manual_seed_all": _returning(None),
    "set_device": _returning(None),
    "device": _returning(nullcontext()),
    "Stream": _Stream,
    "Event": _Stream,
    "current_stream": _returning(_Stream()),
    "default_stream": _returning(_Stream()),
    "stream": _returning(nullcontext()),
    "default_generators": (_Generator(),),
}
"""Attributes of torch.cuda."""


@contextmanager
def imitated() -> Iterator[None]:
    """Context in which torch believes that there is a GPU. May be nested."""
    if _active.depth:
        yield
        return
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, value in IMITATIONS.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", _returning(False)))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(Tensor, "record_stream", _returning(None)))
        if not _there():
            stack.enter_context(patch.object(torch.cuda, "_lazy_init", _returning(None)))
            torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` is a tensor on the host, copied
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(_Functions())
        _active.depth = 1
        stack.callback(setattr, _active, "depth", 0)
        yield


class _Active(threading.local):
    depth = 0


_active = _Active()
_there = torch.cuda.is_available
"""The real one: `imitated` replaces it."""


class _Functions(TorchFunctionMode):
    """Replaces functions whose implementation asks for the GPU itself."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention and (args[0] if args else kwargs["query"]).is_cuda:
            return _attention(*args, **kwargs)
        if function is Tensor.backward and args[0].is_cuda:
            with self:  # checkpointed blocks are recomputed by their backward pass
                return walk(*args, **kwargs)
        if function is Tensor.tolist and isinstance(args[0], Shape):  # torch refuses subclasses
            return args[0].tolist()
        return function(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with the kernel that torch would choose on the GPU among the enabled ones: flash attention without a
    mask in half precision, memory-efficient attention otherwise, and matrix products as the last resort, also for
    tensors that do not have four dimensions."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (t.to(dtype) if t.dtype == torch.float32 else t for t in (query, key, value))
        if attn_mask is not None and attn_mask.dtype == torch.float32:
            attn_mask = attn_mask.to(dtype)
    backends: Any = torch.backends.cuda
    half = query.dtype in (torch.bfloat16, torch.float16)
    fused = query.dim() == key.dim() == value.dim() == 4
    fast = fused and (backends.flash_sdp_enabled() or backends.cudnn_sdp_enabled())
    if fast and half and attn_mask is None and query.shape[-1] <= LARGEST_HEAD:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask.logical_not(), float("-inf"), torch.zeros((), dtype=query.dtype))
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    if fused and backends.mem_efficient_sdp_enabled():
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        needs = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        out = efficient(query, key, value, attn_mask, needs, dropout_p, is_causal, scale=scale)[0]
        return out
    out = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale
    )[0]
    return out

"""Copies between the host and a device that do not wait for the device's queued work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopy", "in_float64", "to_device"]


def to_device(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy numbers that were made on the host to `device`, for indices, times and other small tables.

    After a copy from pageable memory to a CUDA device, torch waits until everything queued before it is done, so that
    the host falls behind in a loop; after one from pinned memory it does not. The values are converted to `dtype` on
    the host. On other devices this is an ordinary copy.

    The host also converts for MPS, which has no float64.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if tensor.device.type != "cpu" or device.type not in ("cuda", "mps"):
        return tensor.to(device=device, dtype=dtype)
    tensor = tensor.to(dtype=dtype)
    if device.type == "mps":
        return tensor.to(device)
    if torch.cuda.is_available():
        tensor = tensor.pin_memory()  # the allocator keeps it until the copy is done
    return tensor.to(device, non_blocking=True)


def in_float64(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64, which MPS does not have: from there it goes to the host first."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class HostCopy:
    """A copy of a tensor in host memory, with the same dtype and strides.

    From a CUDA device it goes to pinned memory, in the order of the current stream: the host waits for it in `wait`
    only. The tensor may be released before.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._host = tensor.cpu()
            return
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """Return the copy once it is complete. May be called from any thread, and repeatedly."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host

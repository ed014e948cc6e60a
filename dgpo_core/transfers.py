"""Copies from the host to a device that do not wait for the device's queued work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy numbers that were made on the host to `device`, for indices, times and other small tables.

    After a copy from pageable memory to a CUDA device, torch waits until everything queued before it is done, so that
    the host falls behind in a loop; after one from pinned memory it does not. The values are converted to `dtype` on
    the host. On other devices this is an ordinary copy.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device=device, dtype=dtype)
    tensor = tensor.to(dtype=dtype)
    if torch.cuda.is_available():
        tensor = tensor.pin_memory()  # the allocator keeps it until the copy is done
    return tensor.to(device, non_blocking=True)

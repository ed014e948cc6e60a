"""Recognize errors of torch that mean out of memory, on a device or in host memory."""

from __future__ import annotations

import re

import torch

__all__ = ["device_is_out_of_memory"]

SIGNS = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"  # torch's CPU allocator, on Linux and on Windows
    r"|\b(CUDA|HIP)\b[^\n]*out of memory"  # the caching allocator, the driver, and NCCL ("Cuda failure 2 'out of ...'")
    r"|CUDA_ERROR_OUT_OF_MEMORY|(cuda|hip)ErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|Failed to CUDA (malloc|calloc|host alloc)"  # NCCL
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(Lt)?Create"  # it has no other status for its own memory
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CURAND|CUFFT)(_STATUS)?(_\w+)?_ALLOC(ATION)?_FAILED"
    r"|CUSPARSE_STATUS_INSUFFICIENT_RESOURCES"
    r"|\bMPS\b[^\n]*out of memory"  # torch's allocator for MPS, at the limit that it sets itself
    r"|\bInvalid buffer size: [\d.]+ [KMGT]i?B"  # a tensor that is larger than Metal's largest buffer
    r"|kIOGPUCommandBufferCallbackErrorOutOfMemory",  # Metal
    re.IGNORECASE,
)
"""What RuntimeErrors say. Only the caching allocator has an exception of its own; libraries that allocate memory
themselves report a status."""


def device_is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    try:
        text = str(error) if isinstance(error, RuntimeError) else ""
    except BaseException:  # the __str__ of third-party exceptions may raise
        return False
    return SIGNS.search(text) is not None

"""Select the device, CUDA, MPS or the CPU, and how its memory is allocated; the devices' names, memory and queues."""

from __future__ import annotations

import os
import platform
import sys

import torch

from dgpo_core.errors import UserError
from dgpo_core.system.portable import peak_memory

__all__ = [
    "NAMES", "choose_device", "device_name", "forget_peak_bytes", "mps_is_available", "peak_bytes", "wait_for_device",
]  # fmt: skip

NAMES = ("auto", "cpu", "cuda", "mps")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables by which users configure torch's allocator: its name, and former ones that torch still reads"""


def choose_device(name: str, key: str = "run.device") -> torch.device:
    """Return the device for the setting `key`: one of NAMES, where `auto` is the current CUDA device if available, or
    else MPS, the GPU of Apple silicon, or else the CPU.

    Raises UserError for any other name, and if a device is requested but not available.
    """
    if name not in NAMES:
        raise UserError(f"{key} {name}: choose one of {', '.join(NAMES)}")
    if name == "mps" and not mps_is_available():
        raise UserError(f"{key}: mps is not available: {_why_no_mps()} (torch {torch.__version__}); use auto or cpu")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            f"{key}: cuda is not available: torch finds no CUDA device "
            f"(torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}); use auto or cpu"
        )
    if name == "mps" or (name == "auto" and not available and mps_is_available()):
        return torch.device("mps", 0)  # with its number, as the tensors on it say
    if name == "cpu" or not available:
        return torch.device("cpu")
    expand_segments()
    return torch.device("cuda", torch.cuda.current_device())


def mps_is_available() -> bool:
    """Return whether torch is built with MPS and finds a GPU."""
    return torch.backends.mps.is_built() and torch.backends.mps.is_available()


def _why_no_mps() -> str:
    if not torch.backends.mps.is_built():
        return "this torch is built without it; its builds for macOS on Apple silicon have it"
    return "torch finds no GPU that it can use; MPS needs Apple silicon and macOS 14 or newer"


def expand_segments() -> None:
    """Let torch's allocator grow its segments, unless the user has configured it.

    Rollouts, decoding and updates need tensors of other sizes; in segments of a fixed size each phase would leave holes
    that the next one cannot use. torch reads the setting when it first uses the allocator, so this has no effect
    afterwards. Workers inherit it.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, on MPS with the version of macOS, which contains its kernels; or else the device's
    type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{torch.backends.mps.get_name()}, macOS {platform.mac_ver()[0]}"
    return device.type


def peak_bytes(device: torch.device) -> int:
    """Return a peak of memory in bytes: on CUDA what tensors took since the last reset; on the CPU the peak RSS of the
    process; on MPS, which counts no peak, what Metal has allocated for the process now, including the memory that torch
    keeps for later tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return peak_memory()


def forget_peak_bytes(device: torch.device) -> None:
    """Start a new peak: on MPS by releasing the memory that torch keeps. The peak RSS of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()


def wait_for_device(device: torch.device) -> None:
    """Wait for the work that is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

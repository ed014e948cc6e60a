"""What a device can do at most, measured: large matrix products in the precision that a model computes in."""

from __future__ import annotations

import time

import torch

__all__ = ["measured_tflops"]


def measured_tflops(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """10^12 operations a second of square matrix products, the best of many within so many seconds."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        _wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

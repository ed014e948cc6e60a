"""Measure the peak throughput of a device with large matrix products in the model's precision."""

from __future__ import annotations

import time

import torch

__all__ = ["measured_tflops"]


def measured_tflops(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Return the throughput of square matrix products in TFLOP/s, the best of repeated products within `seconds`."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

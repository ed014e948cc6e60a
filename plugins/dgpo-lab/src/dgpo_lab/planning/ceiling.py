"""Measure the peak throughput of a device with large matrix products in the model's precision."""

from __future__ import annotations

import time

import torch

from dgpo_core.system.device import wait_for_device

__all__ = ["measured_tflops"]

SIDES = {"cuda": 8192, "mps": 4096}
"""Sides of the matrices on GPUs, whose peak smaller ones do not reach."""


def measured_tflops(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Return the throughput of square matrix products in TFLOP/s, the best of repeated products within `seconds`."""
    side = SIDES.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        wait_for_device(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for_device(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12

"""GPUs to plan for: specifications from the vendors' data sheets, and approximate prices."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CARDS", "Card"]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU.

    memory: GiB available to a process; tflops: peak of dense bf16 matrix products in TFLOP/s; bandwidth: TB/s; price:
    approximate cloud price in 2026 in USD per hour, overridden by `--price`.
    """

    memory: float
    tflops: float
    bandwidth: float
    price: float


CARDS = {
    "h200": Card(139, 989, 4.8, 3.5),  # NVIDIA H200 SXM data sheet (1,979 with sparsity)
    "h100": Card(79, 989, 3.35, 2.5),  # NVIDIA H100 SXM data sheet
    "a100-80": Card(79, 312, 2.04, 1.6),  # NVIDIA A100 80GB SXM data sheet
    "a100-40": Card(39, 312, 1.56, 1.2),
    "l40s": Card(44, 362, 0.86, 1.0),  # NVIDIA L40S data sheet (733 with sparsity), ECC on
    "a10g": Card(22, 70, 0.6, 1.0),  # NVIDIA A10G: fp32 accumulation
    "rtx4090": Card(23.5, 165, 1.01, 0.5),  # NVIDIA Ada architecture white paper, fp32 accumulation
    "rtx3090": Card(23.5, 71, 0.94, 0.25),  # NVIDIA Ampere GA102 white paper, fp32 accumulation
    "rtx4080": Card(15.5, 97, 0.72, 0.3),
    "t4": Card(14.6, 65, 0.32, 0.35),  # fp16, because it has no bf16
}

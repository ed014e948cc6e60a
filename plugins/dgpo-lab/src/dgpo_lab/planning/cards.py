"""GPUs to plan for: specifications from the vendors' data sheets, approximate prices, and what kernels cost on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgpo_lab.planning.kernels import Kernel

__all__ = ["BANDWIDTH", "CARDS", "LAUNCH", "REACHED", "Card"]

LAUNCH = 2.5e-6
"""Shortest time of a kernel in seconds, also of an empty one."""
BANDWIDTH = 3.87 / 4.8
"""Share of the data sheet's bandwidth that elementwise kernels reach."""
REACHED: Mapping[tuple[str, str], float] = {
    ("gemm", "bfloat16"): 671.5 / 989, ("gemm", "tf32"): 280 / 989, ("gemm", "float32"): 47 / 989,
    ("gemm", "float64"): 60 / 989,
    ("convolution", "bfloat16"): 470.05 / 989, ("convolution", "tf32"): 196 / 989, ("convolution", "float32"): 33 / 989,
    ("convolution", "float64"): 42 / 989,
    ("attention", "bfloat16"): 380 / 989, ("attention", "float32"): 60 / 989, ("attention", "float64"): 30 / 989,
}  # fmt: skip
"""Throughput of large kernels by kind and precision, over the data sheet's dense bf16 products.

This cost model is frozen: savings are judged by it, so it changes only with measurements on a card, for all pages at
once. The numbers are those of an H200: 85 % of a sustained 790 TFLOP/s for bf16 products, 70 % of 400 for TF32, 70 % of
67 for float32, 70 % of a product's rate for convolutions, 380 TFLOP/s for flash attention with heads of 64. Other cards
are assumed to reach the same shares.
"""
CEILING = 790 / 989
"""Sustained bf16 matrix products over the data sheet's: what the roofline share is relative to."""


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

    @property
    def ceiling(self) -> float:
        """Operations per second of the largest bf16 matrix products."""
        return self.tflops * 1e12 * CEILING

    def seconds(self, kernel: Kernel) -> float:
        """Return the ideal time of a kernel: of its operations, its bytes or its launch, whichever takes longest."""
        moving = kernel.bytes / (self.bandwidth * 1e12 * BANDWIDTH)
        if not kernel.operations:
            return max(moving, LAUNCH)
        precision = "bfloat16" if kernel.precision == "float16" else kernel.precision
        rate = self.tflops * 1e12 * REACHED.get((kernel.kind, precision), REACHED["gemm", "bfloat16"])
        return max(kernel.operations / rate, moving, LAUNCH)


CARDS = {
    "b200": Card(178, 2250, 8.0, 5.5),  # NVIDIA DGX B200 data sheet, per GPU (4,500 with sparsity)
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

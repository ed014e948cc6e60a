"""float32 arithmetic as in the benchmark, without numpy, which the evaluator does not import."""

from __future__ import annotations

import math
import struct

__all__ = ["float32"]


def float32(value: float) -> float:
    """Round to the nearest float32, ties to even, infinite beyond its range.

    Rounding the float64 sum, difference, product, quotient or square root of float32 values is equal to the float32
    operation, because float64 has more than twice as many digits plus two.
    """
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded

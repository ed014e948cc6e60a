"""float32 without numpy, which the evaluator does not need otherwise: the benchmark compares in it."""

from __future__ import annotations

import math
import struct

__all__ = ["float32"]


def float32(value: float) -> float:
    """The nearest float32, ties to even, infinite beyond its range.

    A sum, difference, product, quotient or root of float32 that Python works out in float64 and this rounds is the
    float32 operation's own: float64 has more than twice its digits and two, so rounding twice is rounding once.
    """
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded

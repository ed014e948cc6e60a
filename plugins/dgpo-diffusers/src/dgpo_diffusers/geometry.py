"""Sizes of pictures that a model can draw, and the shift of its times that goes with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dgpo_core.schedules import exponential_shift
from dgpo_schemas.rules import LONGEST_SIDE

__all__ = ["multiples", "nearest_size", "shift_of"]


def multiples(step: int, largest: int = LONGEST_SIDE) -> range:
    """Possible sides in pixels, from one step to the largest."""
    return range(step, largest + 1, step)


def nearest_size(size: tuple[int, int], possible: Sequence[range]) -> tuple[int, int]:
    """The possible (height, width) nearest to one in pixels; possible: `multiples` of each side."""
    height, width = (
        min(max(side.start, round(given / side.step) * side.step), side[-1])
        for given, side in zip(size, possible, strict=True)
    )
    return height, width


def shift_of(scheduler: Mapping[str, Any], tokens: int) -> float:
    """The shift k of times, sigma to k sigma / (1 + (k - 1) sigma), by a scheduler's configuration.

    tokens: of a sample. With `use_dynamic_shifting` a number mu lies on the line through (base_image_seq_len,
    base_shift) and (max_image_seq_len, max_shift), also beyond both, and k is exp(mu), or mu itself if
    `time_shift_type` is "linear": `calculate_shift` of diffusers' pipelines and FlowMatchEulerDiscreteScheduler.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    base, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    shift = exponential_shift(tokens, base_tokens=low, max_tokens=high, base_shift=base, max_shift=most)
    return math.log(shift) if scheduler.get("time_shift_type") == "linear" else shift

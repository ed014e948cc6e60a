"""Possible image sizes of a model, and the time shift that depends on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import exponential_shift
from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.problems import is_number, show

__all__ = ["check_flow", "multiples", "nearest_size", "shift_of"]

OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
"""Options of FlowMatchEulerDiscreteScheduler for time spacings that are not supported."""
SHIFTS = {"shift": 1.0, "flow_shift": 1.0, "base_shift": 0.5, "max_shift": 1.15}
SHIFTS |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}


def check_flow(scheduler: Mapping[str, Any], where: str) -> None:
    """Raise UserError if a scheduler is not that of a flow model, or has an unsupported time spacing or an invalid
    shift. where: location of the scheduler, for messages."""
    # diffusers lists the defaulted keys in _use_default_values.
    kind, defaults = scheduler.get("prediction_type"), scheduler.get("_use_default_values", ())
    if kind not in (None, "flow_prediction") and "prediction_type" not in defaults:
        raise UserError(f"{where}: prediction_type is {show(kind)}; allowed is flow_prediction, or nothing")
    for name in OTHER_GRIDS:
        if scheduler.get(name):
            raise UserError(f"{where}: {name} is {show(scheduler[name])}; allowed is false")
    for name, default in SHIFTS.items():
        value = scheduler.get(name, default)
        above = " above 0" if name in ("shift", "flow_shift") else ""
        if not is_number(value) or (above and value <= 0):
            raise UserError(f"{where}: {name} is {show(value)}; allowed is a number{above}")
    base, most = (scheduler.get(name, SHIFTS[name]) for name in ("base_image_seq_len", "max_image_seq_len"))
    if scheduler.get("use_dynamic_shifting") and base == most:
        raise UserError(
            f"{where}: base_image_seq_len and max_image_seq_len are both {base}, so the shift cannot be interpolated; "
            "allowed are two different numbers"
        )
    terminal = scheduler.get("shift_terminal")
    if terminal is not None and not (isinstance(terminal, float) and 0 < terminal < 1):
        raise UserError(f"{where}: shift_terminal is {show(terminal)}; allowed is null, or a number between 0 and 1")


def multiples(step: int, largest: int = LONGEST_SIDE) -> range:
    """Return possible side lengths in pixels, from one step to the largest."""
    return range(step, largest + 1, step)


def nearest_size(size: tuple[int, int], possible: Sequence[range]) -> tuple[int, int]:
    """Return the possible (height, width) nearest to a size in pixels. possible: `multiples` of each side."""
    height, width = (
        min(max(side.start, round(given / side.step) * side.step), side[-1])
        for given, side in zip(size, possible, strict=True)
    )
    return height, width


def shift_of(scheduler: Mapping[str, Any], tokens: int) -> float:
    """Return the time shift k of a scheduler's configuration; it maps sigma to k sigma / (1 + (k - 1) sigma).

    tokens: number of tokens of a sample. With `use_dynamic_shifting`, mu is linear in the number of tokens, through
    (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), and k is exp(mu), or mu if `time_shift_type` is
    "linear". Source: `calculate_shift` of diffusers' pipelines and FlowMatchEulerDiscreteScheduler.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    base, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    shift = exponential_shift(tokens, base_tokens=low, max_tokens=high, base_shift=base, max_shift=most)
    return math.log(shift) if scheduler.get("time_shift_type") == "linear" else shift

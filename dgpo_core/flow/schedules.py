"""Compute sampler times: a model's grid, shifted, stretched to its terminal time, with a final 0 (`types.Schedule`).

sigma is flow-matching time in [0, 1]: 1 is noise, 0 is data. All times are float64 on the CPU. The grids match
diffusers: `scheduler` is FlowMatchEulerDiscreteScheduler without explicit sigmas (SD3, Wan), `even` the `sigmas` that
pipelines pass to it (FLUX, Qwen-Image, LTX). With 4 steps and shift 3, `even` yields 1, 0.9, 0.75, 0.5 and `scheduler`
1, 0.8577, 0.6022, 0.0089.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.sizes import Size
from dgpo_core.flow.velocity import shift_sigma
from dgpo_core.types import Schedule
from dgpo_schemas.sigma import AUTO, Shift
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone

__all__ = [
    "SIGMA_STEP",
    "check",
    "exponential_shift",
    "finish",
    "flux2_shift",
    "of_model",
    "only_one",
    "sigmas",
    "stretched",
]

SIGMA_STEP = 1 / 1000
"""The smallest time of models trained with 1000 discrete timesteps."""


def of_model(backbone: Backbone, size: Size, steps: int, shift: Shift) -> Schedule:
    """Return the model's schedule for samples of this size (height, width); `shift` overrides its shift unless `auto`.

    Raises PluginError if the schedule violates the contract.
    """
    schedule = backbone.schedule(*size, steps)
    who = f"backbone: {type(backbone).__name__}'s schedule for {size[0]}x{size[1]} in {steps} steps"
    if not isinstance(schedule, Schedule):
        raise PluginError(f"{who} must be a Schedule, got {type(schedule).__name__}")
    numbers: tuple[object, ...] = (
        schedule.shift,
        schedule.first,
        0.5 if schedule.terminal is None else schedule.terminal,
        *(schedule.grid if isinstance(schedule.grid, tuple) else ()),
    )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real):
            raise PluginError(f"{who} must contain plain numbers, got {clean(repr(number), 100)}")
    if not 0 < schedule.shift < math.inf:
        raise PluginError(f"{who}: the shift must be a positive number, got {schedule.shift:g}")
    try:
        check(steps, schedule)
    except ValueError as error:
        raise PluginError(f"{who}: {error}") from error
    return schedule if shift == AUTO else replace(schedule, shift=shift)


def only_one(schedules: Mapping[Size, Schedule], objective: str) -> None:
    """Raise UserError if the schedules of different sizes differ.

    Objectives with `needs_path` take their training times from the paths, and one set of times is drawn per iteration.
    """
    (size, schedule), *others = schedules.items()
    for other, differing in others:
        if differing != schedule:
            both = ((size, schedule), (other, differing))
            what = " and ".join(f"{height}x{width} (shift {s.shift:.4g})" for (height, width), s in both)
            cure = "set rollout.shift to a number, or " if replace(differing, shift=schedule.shift) == schedule else ""
            raise UserError(
                f"objective: {objective} requires the same sampling times for all samples, but {what} differ in the "
                f"model's schedule: {cure}use one size for all prompts, that of rollout.resolution"
            )


def sigmas(steps: int, schedule: Schedule) -> Tensor:
    """Return the times of a schedule: float64 [steps + 1], descending, shifted and stretched, the last 0.

    Raises UserError if steps < 1, or the shift is not positive or so large that times coincide. Raises ValueError for
    an invalid schedule of a model (`check`).
    """
    check(steps, schedule)
    first, grid = schedule.first, schedule.grid
    if isinstance(grid, tuple):
        times = torch.tensor(grid, dtype=torch.float64)
    else:
        last = first / steps if grid == "even" else shift_sigma(SIGMA_STEP, schedule.shift)
        times = torch.linspace(first, last, steps, dtype=torch.float64)
    return finish(times, schedule)


def finish(grid: Tensor, schedule: Schedule) -> Tensor:
    """Shift and stretch a grid, float64 [steps] in (0, 1], descending, and append a final 0: [steps + 1].

    Raises UserError if two shifted times coincide.
    """
    shifted = shift_sigma(grid, schedule.shift)
    if schedule.terminal is not None:
        shifted = stretched(shifted, schedule.terminal)
    closed = torch.cat([shifted, shifted.new_zeros(1)])
    if not bool((closed.diff() < 0).all()):
        raise UserError(
            f"rollout.shift: with {schedule.shift:g} the sampler's times are no longer distinct; typical values are "
            "1 to 12"
        )
    return closed


def stretched(sigmas: Tensor, terminal: float) -> Tensor:
    """Stretch times away from 1 so that the last is `terminal`: 1 - (1 - sigma) * (1 - terminal) / (1 - last).

    Matches diffusers' `stretch_shift_to_terminal`, except that a single time at 1, where that divides 0 by 0, is
    returned unchanged.
    """
    last = float(sigmas[-1])
    if last == 1:
        return sigmas
    return 1 - (1 - sigmas) * ((1 - terminal) / (1 - last))


def check(steps: int, schedule: Schedule) -> None:
    """Raise UserError for invalid settings of a run file, and ValueError for an invalid schedule of a model
    (`types.Schedule`)."""
    if steps < 1:
        raise UserError(f"rollout.steps: must be at least 1, got {steps}")
    shift, grid, terminal, first = schedule.shift, schedule.grid, schedule.terminal, schedule.first
    if not 0 < shift < math.inf:
        raise UserError(f"rollout.shift: must be positive, got {shift:g} (1 disables shifting)")
    if not 0 < first <= 1:
        raise ValueError(f"first time must be above 0 and at most 1, got {first:g}")
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"terminal time must be between 0 and 1, got {terminal:g}")
    if isinstance(grid, tuple):
        if len(grid) != steps:
            raise ValueError(f"a schedule for {steps} steps has {len(grid)} times")
        if grid[0] != first:
            raise ValueError(f"times must start at the schedule's first time {first:g}, got {grid[0]:g}")
        if not all(a > b for a, b in zip(grid, (*grid[1:], 0.0), strict=True)):
            raise ValueError("times must descend and stay above 0")
    elif grid not in ("even", "scheduler"):
        raise ValueError(f"grid must be 'even', 'scheduler' or a tuple of times, got {grid!r}")


def exponential_shift(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Return the shift exp(mu), with mu linear in the number of tokens and extrapolated beyond the two end points.

    mu passes through (base_tokens, base_shift) and (max_tokens, max_shift). tokens: sequence length of one latent in
    the transformer. Matches diffusers' `calculate_shift` with `time_shift_type: exponential`. The defaults are those of
    FLUX.1: 3.158 at 1024x1024 with 4096 tokens.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))


def flux2_shift(tokens: int, steps: int) -> float:
    """Return FLUX.2's shift exp(mu), which also depends on the number of steps; diffusers' `compute_empirical_mu`.

    tokens: sequence length of one latent, (height / 16) * (width / 16). 8.60 at 1024x1024 in 28 steps.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return math.exp(slope * steps + at_200 - 200.0 * slope)

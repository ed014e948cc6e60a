"""Times of samplers: a model's grid, shifted, stretched to its terminal time, and closed with 0 (`types.Schedule`).

sigma is flow-matching time in [0, 1]: 1 is noise, 0 is data. Everything is float64 on the CPU. The grids are those of
diffusers: `scheduler` is FlowMatchEulerDiscreteScheduler without given times (SD3, Wan), `even` what pipelines give it
as `sigmas` (FLUX, Qwen-Image, LTX). The wrong grid is another image: with 4 steps and shift 3 `even` is 1, 0.9, 0.75,
0.5 and `scheduler` 1, 0.8577, 0.6022, 0.0089.
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
    """The model's schedule for samples of this size (height, width), with this shift unless it is `auto`.

    Raises PluginError for one that breaks the contract.
    """
    found = backbone.schedule(*size, steps)
    who = f"backbone: {type(backbone).__name__}'s schedule for {size[0]}x{size[1]} in {steps} steps"
    if not isinstance(found, Schedule):
        raise PluginError(f"{who} is {type(found).__name__}, not a Schedule")
    numbers: tuple[object, ...] = (
        found.shift,
        found.first,
        0.5 if found.terminal is None else found.terminal,
        *(found.grid if isinstance(found.grid, tuple) else ()),
    )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real):
            raise PluginError(f"{who} is of plain numbers, not {clean(repr(number), 100)}")
    if not 0 < found.shift < math.inf:
        raise PluginError(f"{who} has the shift {found.shift:g}, which must be a positive number")
    try:
        check(steps, found)
    except ValueError as error:
        raise PluginError(f"{who}: {error}") from error
    return found if shift == AUTO else replace(found, shift=shift)


def only_one(schedules: Mapping[Size, Schedule], objective: str) -> None:
    """Raise UserError where samples of different sizes have different times: an objective that learns from the steps of
    paths takes its training times from them, and these are drawn once an iteration for all samples."""
    (size, schedule), *others = schedules.items()
    for other, differing in others:
        if differing != schedule:
            both = ((size, schedule), (other, differing))
            what = " and ".join(f"{height}x{width} (shift {s.shift:.4g})" for (height, width), s in both)
            cure = "set rollout.shift to a number, or " if replace(differing, shift=schedule.shift) == schedule else ""
            raise UserError(
                f"objective: {objective} learns from the steps of the samples' paths, but samples of {what} have other "
                f"times by the model's schedule: {cure}give all prompts one size, that of rollout.resolution"
            )


def sigmas(steps: int, schedule: Schedule) -> Tensor:
    """All that the schedule says: float64 [steps + 1], descending from `first`, shifted, to 0.

    Raises UserError where there are no such times: fewer than one step, a shift that is not positive or presses times
    together. Raises ValueError for a schedule that a model may not give (`check`).
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
    """A grid float64 [steps] of times in (0, 1], descending: shifted, stretched, and a final 0, [steps + 1].

    Raises UserError if the shift presses two times into one.
    """
    shifted = shift_sigma(grid, schedule.shift)
    if schedule.terminal is not None:
        shifted = stretched(shifted, schedule.terminal)
    closed = torch.cat([shifted, shifted.new_zeros(1)])
    if not bool((closed.diff() < 0).all()):
        raise UserError(
            f"rollout.shift: with {schedule.shift:g} the sampler's times are no longer distinct; 1 to 12 is usual"
        )
    return closed


def stretched(sigmas: Tensor, terminal: float) -> Tensor:
    """1 - (1 - sigma) * (1 - terminal) / (1 - last): the distances from 1 in proportion, the last time `terminal`.

    As diffusers' `stretch_shift_to_terminal`. A lone time at 1 stays, where that divides 0 by 0.
    """
    last = float(sigmas[-1])
    if last == 1:
        return sigmas
    return 1 - (1 - sigmas) * ((1 - terminal) / (1 - last))


def check(steps: int, schedule: Schedule) -> None:
    """Raise UserError for numbers of a run file that give no times, and ValueError for a model's schedule that breaks
    the contract (`types.Schedule`)."""
    if steps < 1:
        raise UserError(f"rollout.steps: {steps} given, a sampler needs at least 1")
    shift, grid, terminal, first = schedule.shift, schedule.grid, schedule.terminal, schedule.first
    if not 0 < shift < math.inf:
        raise UserError(f"rollout.shift: {shift:g} given, it must be positive (1 leaves the times as they are)")
    if not 0 < first <= 1:
        raise ValueError(f"a schedule's first time is above 0 and at most 1, not {first:g}")
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"a schedule's terminal time is between 0 and 1, not {terminal:g}")
    if isinstance(grid, tuple):
        if len(grid) != steps:
            raise ValueError(f"a schedule for {steps} steps has {len(grid)} times")
        if grid[0] != first:
            raise ValueError(f"a schedule's times begin at its first time {first:g}, not at {grid[0]:g}")
        if not all(a > b for a, b in zip(grid, (*grid[1:], 0.0), strict=True)):
            raise ValueError("a schedule's times descend and stay above 0")
    elif grid not in ("even", "scheduler"):
        raise ValueError(f"a schedule's grid is 'even', 'scheduler' or a tuple of times, not {grid!r}")


def exponential_shift(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """exp(mu), mu on the line through (base_tokens, base_shift) and (max_tokens, max_shift), which goes on beyond both.

    tokens: of one latent, as the transformer sees it. As diffusers' `calculate_shift` with the scheduler's
    `time_shift_type` exponential. The defaults are FLUX.1's: 3.158 at 1024x1024, of 4096 tokens.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))


def flux2_shift(tokens: int, steps: int) -> float:
    """exp(mu) by FLUX.2's rule, which looks at the number of steps too: diffusers' `compute_empirical_mu`.

    tokens: of one latent, a side 1/16 of the pixels. 8.60 at 1024x1024 in 28 steps.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return math.exp(slope * steps + at_200 - 200.0 * slope)

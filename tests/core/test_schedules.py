"""Times of samplers against diffusers and closed forms: grids, shifts, the terminal stretch, the first time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.schedules import exponential_shift, flux2_shift, of_model, sigmas, stretched
from dgpo_core.types import Schedule
from dgpo_kit.toy import ToyBackbone, ToyOptions
from dgpo_schemas.sections.backbone import BackboneSection


def of_scheduler(config: Mapping[str, Any], steps: int, **given: Any) -> Tensor:
    """diffusers' own times, float32."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **config)
    if given:
        scheduler.set_timesteps(**given)
    else:
        scheduler.set_timesteps(steps)
    found: Tensor = scheduler.sigmas.double()
    return found


def backbone_with(schedule: Any) -> ToyBackbone:
    class Scheduled(ToyBackbone):
        def schedule(self, height: int, width: int, steps: int) -> Schedule:
            found: Schedule = schedule
            return found

    section = BackboneSection(use="toy", checkpoint="none")
    return Scheduled(section, ToyOptions(), device=torch.device("cpu"))


def even(steps: int) -> list[float]:
    """What pipelines give to the scheduler."""
    return list(np.linspace(1.0, 1 / steps, steps))


def test_the_two_grids_in_numbers() -> None:
    assert sigmas(4, Schedule(3.0, "even")).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert sigmas(4, Schedule(3.0, "scheduler")).tolist() == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=5e-5)


@pytest.mark.parametrize(("steps", "terminal"), [(1, None), (2, None), (50, None), (2, 0.02), (7, 0.1)])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.7])
def test_grids_shift_and_stretch_are_diffusers(steps: int, shift: float, terminal: float | None) -> None:
    static = {"shift": shift, "shift_terminal": terminal}
    dynamic = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": terminal}
    found = sigmas(steps, Schedule(shift, "even", terminal))
    for expected in (
        of_scheduler(static, steps, sigmas=even(steps)),
        of_scheduler(dynamic, steps, sigmas=even(steps), mu=math.log(shift)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
    found = sigmas(steps, Schedule(shift, "scheduler", terminal))
    torch.testing.assert_close(found, of_scheduler(static, steps), rtol=0, atol=2e-7)


def test_explicit_times_are_shifted_and_closed() -> None:
    grid = (0.9, 0.4, 0.3)
    found = sigmas(3, Schedule(2.0, grid, first=0.9))
    assert found.tolist() == pytest.approx([1.8 / 1.9, 0.8 / 1.4, 0.6 / 1.3, 0.0])
    given = of_scheduler({"shift": 2.0}, 3, sigmas=list(grid))
    torch.testing.assert_close(found, given, rtol=0, atol=1e-7)


@pytest.mark.parametrize("grid", ["even", "scheduler"])
def test_a_grid_begins_at_the_first_time(grid: Any) -> None:
    found = sigmas(5, Schedule(grid=grid, first=0.9))
    assert found[0] == 0.9
    assert found.diff()[:-1].tolist() == pytest.approx([float(found.diff()[0])] * 4)
    assert float(found[-2]) == pytest.approx(0.18 if grid == "even" else 0.001)
    assert found.dtype == torch.float64


def test_the_stretch_keeps_proportions_and_ends_at_the_terminal_time() -> None:
    plain = sigmas(6, Schedule(3.0, "even"))[:-1]
    found = stretched(plain, 0.1)
    assert float(found[-1]) == pytest.approx(0.1, abs=1e-15)
    ratio = (1 - found[1:]) / (1 - plain[1:])
    assert ratio.tolist() == pytest.approx([float(ratio[0])] * 5)
    assert stretched(plain[:1], 0.1).tolist() == [1.0]  # a lone step from 1


def test_dpmpp_keeps_its_own_grid_and_honors_the_rest() -> None:
    sampler = FlowDPMSolverPP(None)
    for grid in ("even", (0.9, 0.5)):
        found = sampler.sigmas(2, Schedule(2.0, grid, first=0.9))  # type: ignore[arg-type]
        assert found.tolist() == pytest.approx([1.8 / 1.9, 0.9 / 1.45, 0.0])
    assert float(sampler.sigmas(4, Schedule(3.0, terminal=0.05))[-2]) == pytest.approx(0.05)
    assert float(sampler.sigmas(4, Schedule())[0]) == 0.999


def test_shifts_by_rule() -> None:
    flux = [exponential_shift(tokens) for tokens in (1024, 4096)]  # 512 and 1024 pixels
    qwen = [
        exponential_shift(side * side, max_tokens=8192, max_shift=0.9) for side in (32, 64, 83)
    ]  # 512, 1024, 1328 pixels
    assert [round(k, 3) for k in flux] == [1.878, 3.158]
    assert [round(k, 3) for k in qwen] == [1.714, 2.001, 2.303]
    for tokens, steps, k in [(24**2, 8, 7.12), (32**2, 10, 7.30), (4096, 4, 9.89), (4096, 28, 8.60), (4096, 50, 7.56)]:
        assert flux2_shift(tokens, steps) == pytest.approx(k, abs=5e-3)
    assert exponential_shift(16384) == pytest.approx(math.exp(0.5 + 0.65 * 16128 / 3840))  # not clamped
    assert flux2_shift(4301, 4) == flux2_shift(4301, 50) == pytest.approx(math.exp(0.00016927 * 4301 + 0.45666666))


@pytest.mark.slow
def test_shifts_by_rule_are_the_pipelines() -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    for tokens in (64, 256, 1000, 4096, 4300, 4301, 9000):
        for base, most in ((0.5, 1.15), (0.5, 0.9)):
            mu = calculate_shift(tokens, 256, 8192, base, most)
            found = exponential_shift(tokens, max_tokens=8192, base_shift=base, max_shift=most)
            assert found == pytest.approx(math.exp(mu), rel=1e-12)
        for steps in (4, 28, 50, 200):
            assert flux2_shift(tokens, steps) == pytest.approx(math.exp(compute_empirical_mu(tokens, steps)), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(first=0.0), "first time must be above 0 and at most 1, got 0"),
        (Schedule(first=1.1), "first time must be above 0 and at most 1, got 1.1"),
        (Schedule(terminal=1.0), "terminal time must be between 0 and 1, got 1"),
        (Schedule(grid=(1.0, 0.5)), "for 3 steps has 2 times"),
        (Schedule(grid=(0.9, 0.5, 0.2)), "start at the schedule's first time 1, got 0.9"),
        (Schedule(grid=(1.0, 0.5, 0.5)), "descend and stay above 0"),
        (Schedule(grid=(1.0, 0.5, 0.0)), "descend and stay above 0"),
        (Schedule(grid="uneven"), "'even', 'scheduler' or a tuple of times, got 'uneven'"),  # type: ignore[arg-type]
    ],
)
def test_a_schedule_that_breaks_the_contract(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FlowEuler(None).sigmas(3, schedule)
    with pytest.raises(PluginError, match=f"Scheduled's schedule for 8x8 in 3 steps: .*{re.escape(message)}"):
        of_model(backbone_with(schedule), (8, 8), 3, 3.0)


@pytest.mark.parametrize("found", [None, Schedule(shift=math.nan), Schedule(shift=0.0)])
def test_a_model_whose_schedule_is_none(found: Any) -> None:
    with pytest.raises(PluginError, match="Scheduled's schedule"):
        of_model(backbone_with(found), (8, 8), 3, "auto")


def test_a_runs_shift_takes_the_place_of_the_models() -> None:
    own = Schedule(2.0, "even", 0.02)
    backbone = backbone_with(own)
    assert of_model(backbone, (8, 8), 3, "auto") == own
    assert of_model(backbone, (8, 8), 3, 4.0) == replace(own, shift=4.0)


def test_times_that_a_shift_presses_together() -> None:
    for grid in ("even", (1.0, 0.5, 0.2)):
        with pytest.raises(UserError, match="no longer distinct"):
            sigmas(3, Schedule(1e18, grid))  # type: ignore[arg-type]
    assert all(a > b for a, b in pairwise(sigmas(3, Schedule(1e6, "even")).tolist()))

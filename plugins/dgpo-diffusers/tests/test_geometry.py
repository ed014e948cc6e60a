"""Sizes and shifts against diffusers' own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dgpo_core.errors import UserError
from dgpo_diffusers.geometry import check_flow, nearest_size, shift_of

EVEN = [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("size, nearest", [((32, 48), (32, 48)), ((33, 45), (32, 48)), ((0, 999), (16, 512))])
def test_the_nearest_size(size: tuple[int, int], nearest: tuple[int, int]) -> None:
    assert nearest_size(size, (range(16, 513, 16), range(16, 513, 16))) == nearest


@pytest.mark.parametrize("tokens", [64, 1024, 4096, 9000])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
        {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.7},
    ],
)
def test_the_shift_is_the_schedulers(config: dict[str, Any], tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    settings = {n: scheduler.config[f"{n}_image_seq_len"] for n in ("base", "max")}
    mu = calculate_shift(tokens, *settings.values(), scheduler.config.base_shift, scheduler.config.max_shift)
    scheduler.set_timesteps(sigmas=EVEN, mu=mu if scheduler.config.use_dynamic_shifting else None)
    k, even = shift_of(scheduler.config, tokens), torch.tensor(EVEN)
    torch.testing.assert_close(scheduler.sigmas[:-1], k * even / (1 + (k - 1) * even), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side, k", [(512, 1.878), (1024, 3.158)])
def test_published_shifts(side: int, k: float) -> None:
    """FLUX.1's."""
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    assert shift_of(config, (side // 16) ** 2) == pytest.approx(k, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'; allowed is flow_prediction"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is true; allowed is false"),
        ({"invert_sigmas": True}, "invert_sigmas is true"),
        ({"shift": 0}, "shift is 0; allowed is a number above 0"),
        ({"flow_shift": "3"}, "flow_shift is '3'; allowed is a number"),
        ({"base_shift": None}, "base_shift is null"),
        (
            {"use_dynamic_shifting": True, "max_image_seq_len": 256},
            "base_image_seq_len and max_image_seq_len are both 256, so the shift cannot be interpolated",
        ),
        ({"shift_terminal": 2}, "shift_terminal is 2"),
    ],
)
def test_times_that_are_not_known(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"there: {message}")):
        check_flow(config, "there")


def test_usual_schedulers_are_known() -> None:
    check_flow({}, "there")
    check_flow(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02).config, "there")
    check_flow(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).config, "there")

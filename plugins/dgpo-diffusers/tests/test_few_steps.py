"""Models distilled to few steps need no settings of their own: their schedule, 4 steps and guidance 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch.testing import assert_close

from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.types import Prompt
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.run import RunConfig

SIZE, TEXTS = (32, 48), ["a red circle", "green"]


def engine_of(directory: Path, **rollout: Any) -> Engine:
    settings = {"sampler": "flow-euler", "steps": 4, "shift": "auto", "resolution": [*SIZE]}
    data = run_data(Path("unused"), rollout=settings | rollout)
    data["backbone"] = {"use": "flux", "checkpoint": str(directory)}
    registry = Registry()
    registry.register(plugin, distribution="toy")
    return build_engine(RunConfig.model_validate(data), registry)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("schnell") / "tiny", schnell=True)


def test_four_steps_equal_the_pipelines(schnell: Path) -> None:
    engine = engine_of(schnell)
    rollout_sampler = engine.rollout_sampler()
    assert rollout_sampler.evaluated_times(SIZE) == [1.0, 0.75, 0.5, 0.25]
    (rollout,) = rollout_sampler.sample_groups([Prompt(text) for text in TEXTS], 1, Draws(0), "policy")
    noise = normal_rows([Draws(0).at(i, 0).at("noise") for i in range(2)], rollout_sampler.shape, "cpu")
    pipeline = FluxPipeline.from_pretrained(schnell)
    pipeline.set_progress_bar_config(disable=True)
    tokens = pipeline(
        TEXTS, height=SIZE[0], width=SIZE[1], num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256,
        latents=FluxPipeline._pack_latents(noise, *noise.shape), output_type="latent",
    ).images  # fmt: skip
    expected = FluxPipeline._unpack_latents(tokens, *noise.shape[2:], vae_scale_factor=1)
    assert_close(rollout.x0, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_guidance_is_refused(schnell: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        engine_of(schnell, guidance=3.0).rollout_sampler()
    assert str(refused.value) == (
        "rollout.guidance: 3 is not possible: backbone: flux has no unconditional prediction for classifier-free "
        "guidance; set it to 1"
    )
    assert engine_of(make_tiny_flux(tmp_path / "dev"), guidance=3.0).rollout_sampler().guidance == 3.0


def test_times_that_are_not_shifted_are_schnells_own(schnell: Path) -> None:
    schedule = engine_of(schnell).times.schedule
    assert (schedule.shift, schedule.grid) == (1.0, "even")
    assert torch.equal(engine_of(schnell).sampler.sigmas(4, schedule), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())

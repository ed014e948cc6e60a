"""Z-Image's `cfg_truncation` is a guidance interval: the pipeline guides no step at which 1 - sigma exceeds it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.types import Prompt
from dgpo_schemas.sections.training import ObjectiveSection
from tests.families.proof import build, load, proofs

Z_IMAGE = proofs()["z-image"]
SIZE, STEPS, TEXTS = (32, 48), 6, ["a red circle", "green"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Z_IMAGE.make(tmp_path_factory.mktemp("z-image") / "tiny")


def test_truncation_is_an_interval(checkpoint: Path) -> None:
    """Between two times, and at one of them, whose step both guide. The pipeline overwrites its list of prompts."""
    backbone, pipeline = build(Z_IMAGE, checkpoint), load(Z_IMAGE, checkpoint)

    def sampler(interval: list[float] | None) -> RolloutSampler:
        return RolloutSampler(
            Policy(backbone, ObjectiveSection()), FlowEuler(None), ConditioningCache(backbone), resolution=SIZE,
            steps=STEPS, shift="auto", guidance=4.5, micro_batch=None, autocast=nullcontext, guidance_interval=interval,
        )  # fmt: skip

    def drawn(interval: list[float] | None) -> Tensor:
        (rollout,) = sampler(interval).sample_groups([Prompt(text) for text in TEXTS], 1, Draws(0), "policy")
        return rollout.x0

    noise = normal_rows([Draws(0).at(i, 0).at("noise") for i in range(2)], backbone.latent_shape(*SIZE), "cpu")
    times = sampler(None).evaluated_times(SIZE)
    everywhere: Any = drawn(None)
    tolerance = 1e-5 * float(everywhere.abs().max())
    for truncation, guided in ((1 - (times[2] + times[3]) / 2, 3), (1 - times[4], 5)):
        expected = pipeline(
            prompt=[*TEXTS], height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, guidance_scale=3.5,
            cfg_truncation=truncation, latents=noise, output_type="latent",
        )[0]  # fmt: skip
        found = [1 - truncation, 1.0]
        assert [scale != 1 for scale in sampler(found).scales(SIZE) or ()] == [i < guided for i in range(STEPS)]
        assert_close(drawn(found), expected, atol=tolerance, rtol=0)
        assert (everywhere - expected).abs().max() > 100 * tolerance
    assert torch.equal(drawn([0.0, 1.0]), everywhere)

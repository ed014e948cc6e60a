"""A guidance interval against diffusers' pipeline, with guidance switched off between its steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.types import Prompt
from dgpo_schemas.sections.training import ObjectiveSection
from dgpo_sd3.backbone import SD3Backbone

Build = Callable[..., SD3Backbone]
Reference = Callable[..., Any]

PROMPTS = ["a red circle", "two blue squares, left"]
SIZE = (32, 48)
STEPS = 5


def test_guidance_that_ends_early_equals_the_pipelines(checkpoint: Path, build: Build, reference: Reference) -> None:
    """diffusers documents this callback as dynamic classifier-free guidance. Shift 3: times 1, .93, .82, .62, .009."""
    backbone, pipeline = build(checkpoint), reference(checkpoint)
    rollout_sampler = RolloutSampler(
        Policy(backbone, ObjectiveSection()), FlowEuler(None), ConditioningCache(backbone), resolution=SIZE,
        steps=STEPS, shift=3.0, guidance=4.5, micro_batch=None, autocast=nullcontext, guidance_interval=[0.7, 1.0],
    )  # fmt: skip
    (rollout,) = rollout_sampler.sample_groups([Prompt(text) for text in PROMPTS], 1, Draws(0), "policy")
    scales = rollout_sampler.scales(SIZE)
    assert scales == [4.5, 4.5, 4.5, 1.0, 1.0]
    noise = normal_rows([Draws(0).at(i, 0).at("noise") for i in range(2)], rollout_sampler.shape, torch.device("cpu"))

    def off(pipeline: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step != 2:
            return given
        pipeline._guidance_scale = 1.0
        return {name: tensor.chunk(2)[1] for name, tensor in given.items()}

    def by_pipeline(**more: Any) -> torch.Tensor:
        images: torch.Tensor = pipeline(
            PROMPTS, height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, guidance_scale=4.5, latents=noise,
            max_sequence_length=16, output_type="latent", **more,
        ).images  # fmt: skip
        return images

    inputs = ["prompt_embeds", "pooled_prompt_embeds"]
    expected = by_pipeline(callback_on_step_end=off, callback_on_step_end_tensor_inputs=inputs)
    assert_close(rollout.x0, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert (by_pipeline() - expected).abs().max() > 1e-3, "the comparison means nothing if guidance has no effect"

"""The example run file has the published geometry and can be loaded."""

from __future__ import annotations

from pathlib import Path

import yaml

from dgpo_core.builtin.samplers import FlowDPMSolverPP
from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.contracts import TimestepContext
from dgpo_core.types import Schedule
from dgpo_schemas.run import RunConfig
from dgpo_wan.options import WanOptions

EXAMPLE = Path(__file__).parents[3] / "examples" / "wan21-1.3b-ocr.yaml"


def test_the_example() -> None:
    config = RunConfig.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    options = WanOptions.model_validate(config.backbone.options)
    assert (*config.rollout.height_width, options.frames) == (240, 416, 33)
    assert all(side % 16 == 0 for side in config.rollout.height_width)
    assert (config.rollout.steps, config.rollout.guidance, config.optimizer.learning_rate) == (20, 4.5, 1e-4)
    sigmas = FlowDPMSolverPP(None).sigmas(config.rollout.steps, Schedule(3.0))
    context = TimestepContext(sigmas, *config.training_range(3.0), 3.0, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)


def test_editors_find_the_schema() -> None:
    assert EXAMPLE.read_text().splitlines()[0] == "# yaml-language-server: $schema=../schemas/json/run.schema.json"

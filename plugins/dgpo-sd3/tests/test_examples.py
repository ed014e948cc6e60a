"""The example run files have the published settings and can be loaded."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler, SD3Transformer2DModel

from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.contracts import TimestepContext
from dgpo_core.lora import LoraAdapter, select_targets
from dgpo_schemas.run import RunConfig
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.options import SD3Options

EXAMPLES = Path(__file__).parents[3] / "examples"


def read(name: str) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    "name, std, kl, beta, ema_rollouts_after, lowest",
    [
        ("sd35-geneval", "group", 0.02, 100, 500, 4),
        ("sd35-ocr", "batch", 0.02, 100, 200, 6),
        ("sd35-pickscore", "batch", 1e-3, 10, 200, 6),
    ],
)
def test_examples(name: str, std: str, kl: float, beta: float, ema_rollouts_after: int, lowest: int) -> None:
    """`lowest`: the last index of the sampler's steps that the authors' code trains on."""
    config = read(name)
    SD3Options.model_validate(config.backbone.options)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha) == (64, 128)
    assert (config.advantages.std, config.objective.kl, config.objective.beta) == (std, kl, beta)
    assert (config.objective.clip, config.objective.ema_rollouts_after) == (1e-2, ema_rollouts_after)
    assert (config.rollout.guidance, config.objective.kl_cfg, config.objective.reference) == (4.5, 1.0, "frozen")

    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    scheduler.set_timesteps(config.rollout.steps)
    sigmas = scheduler.sigmas.double()
    assert config.rollout.shift == 3
    t_min, t_max = config.training_range(3.0)
    assert ((sigmas >= t_min) & (sigmas <= t_max)).tolist() == [i <= lowest for i in range(11)]
    context = TimestepContext(sigmas, t_min, t_max, 3.0, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)


def test_examples_use_the_published_lora_targets() -> None:
    """Eight projections of SD3.5-M's 24 joint attentions, except the text output that the last one lacks; by default
    also the second attention of 13 blocks."""
    loras = [read(name).backbone.lora for name in ("sd35-geneval", "sd35-ocr", "sd35-pickscore")]
    assert loras[0] == loras[1] == loras[2]
    config = json.loads(files("dgpo_sd3").joinpath("sd3.json").read_text(encoding="utf-8"))
    usual = SD3Backbone.layout.lora_targets
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**config["stabilityai/stable-diffusion-3.5-medium"]["transformer"])
        endings = tuple(f".{target}" for target in select_targets(transformer, None, usual))
        by_default = [name for name, _ in transformer.named_modules() if name.endswith(endings)]
        adapter = LoraAdapter(transformer, loras[0], targets=usual, base="")
    bound = list(adapter.layers)
    assert len(bound) == 24 * 8 - 1 == 191
    assert {name.split(".")[2] for name in bound} == {"attn"}
    size = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert size == 191 * 64 * (1536 + 1536) == 37_552_128
    assert len(by_default) == 191 + 13 * 4 == 243
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"| 191 | {size / 1e6:.1f} M |" in page
    assert f"| default | 243 | {243 * 64 * 3072 / 1e6:.1f} M |" in page


@pytest.mark.parametrize("name", ["sd35-geneval", "sd35-ocr", "sd35-pickscore"])
def test_editors_find_the_schema(name: str) -> None:
    first = (EXAMPLES / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schemas/json/run.schema.json"

"""The meta model against the loaded model and against published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import of_model
from dgpo_core.types import Schedule
from dgpo_kit.given import prompts_of
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.options import WanOptions
from dgpo_wan.testing import make_tiny_checkpoint


def section(checkpoint: object) -> BackboneSection:
    return BackboneSection.model_validate(
        {"use": "wan", "checkpoint": str(checkpoint), "lora": {"rank": 4, "alpha": 4}}
    )


def test_shapes_match_the_loaded_model(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    options = WanOptions(frames=5, text_length=8)
    real = WanBackbone(section(checkpoint), options, device=torch.device("cpu"))
    meta_model = WanBackbone.meta_model(section(checkpoint), options)
    for name, module in real.components().items():
        found = {n: (p.shape, p.dtype) for n, p in meta_model.components()[name].named_parameters()}
        wanted = {n: (p.shape, p.dtype) for n, p in module.named_parameters()}
        assert found == wanted, name
    assert all(p.device.type == "meta" for p in meta_model.module.parameters())
    assert meta_model.latent_shape(64, 64) == real.latent_shape(64, 64)
    one, two = (b.encode(prompts_of(["a", "b"])).tensors["prompt_embeds"] for b in (real, meta_model))
    assert (one.shape, one.dtype) == (two.shape, two.dtype)


@pytest.mark.parametrize(
    ("name", "billions"), [("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.42), ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 14.29)]
)
def test_published_models_have_their_size(name: str, billions: float) -> None:
    """1.42 and 14.3 billion parameters."""
    meta_model = WanBackbone.meta_model(section(name), WanOptions())
    trained = {id(p) for p in meta_model.trainable().values()}
    count = sum(p.numel() for p in meta_model.module.parameters() if id(p) not in trained)
    assert count / 1e9 == pytest.approx(billions, abs=0.01)


def test_unknown_name_is_reported() -> None:
    with pytest.raises(UserError, match=r"a/b is neither a local directory nor .*; known models:"):
        WanBackbone.meta_model(section("a/b"), WanOptions())


def test_the_shift_is_that_of_the_checkpoints_scheduler(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", shift=2.5)
    options = WanOptions(frames=5, text_length=8)
    real = WanBackbone(section(checkpoint), options, device=torch.device("cpu"))
    assert (
        real.schedule(64, 64, 4)
        == WanBackbone.meta_model(section(checkpoint), options).schedule(64, 64, 4)
        == Schedule(2.5)
    )
    assert of_model(real, (64, 64), 4, "auto") == of_model(real, (64, 64), 4, 2.5)
    file = checkpoint / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0}))
    assert WanBackbone.meta_model(section(checkpoint), options).schedule(64, 64, 4) == Schedule(5.0)

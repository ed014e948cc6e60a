"""The meta model against the loaded model."""

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
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.options import SD3Options
from dgpo_sd3.testing import make_tiny_checkpoint


def section(checkpoint: object) -> BackboneSection:
    return BackboneSection.model_validate(
        {"use": "sd3", "checkpoint": str(checkpoint), "lora": {"rank": 4, "alpha": 4}}
    )


@pytest.mark.parametrize("t5", [False, True])
def test_shapes_match_the_loaded_model(t5: bool, tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", t5=t5)
    options = SD3Options(text_length=8 if t5 else 0)
    real = SD3Backbone(section(checkpoint), options, device=torch.device("cpu"))
    meta_model = SD3Backbone.meta_model(section(checkpoint), options)
    for name, module in real.components().items():
        found = {n: (p.shape, p.dtype) for n, p in meta_model.components()[name].named_parameters()}
        assert found == {n: (p.shape, p.dtype) for n, p in module.named_parameters()}, name
    assert all(p.device.type == "meta" for p in meta_model.module.parameters())
    assert meta_model.latent_shape(64, 64) == real.latent_shape(64, 64)
    one, two = (b.encode(prompts_of(["a", "b"])).tensors for b in (real, meta_model))
    assert {n: (t.shape, t.dtype) for n, t in one.items()} == {n: (t.shape, t.dtype) for n, t in two.items()}


def test_offloaded_text_encoders_are_not_counted_as_resident(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    here, away = (
        SD3Backbone(section(checkpoint), SD3Options(text_length=0, offload_text=offload), device=torch.device("cpu"))
        for offload in (False, True)
    )
    assert set(here.components()) - set(away.components()) == {"text encoders"}
    assert not here.offloaded_modules()
    assert set(away.offloaded_modules()) == {"text encoders"}
    with away.encoding():
        found = away.encode(prompts_of(["a red circle"]))
    for name, tensor in here.encode(prompts_of(["a red circle"])).tensors.items():
        assert torch.equal(found.tensors[name], tensor)


def test_components_that_are_missing(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    (checkpoint / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"/vae has no config\.json"):
        SD3Backbone.meta_model(section(checkpoint), SD3Options(text_length=0))


def test_the_shift_is_that_of_the_checkpoints_scheduler(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", shift=2.5)
    options = SD3Options(text_length=0)
    real = SD3Backbone(section(checkpoint), options, device=torch.device("cpu"))
    assert (
        real.schedule(64, 64, 4)
        == SD3Backbone.meta_model(section(checkpoint), options).schedule(64, 64, 4)
        == Schedule(2.5)
    )
    assert of_model(real, (64, 64), 4, "auto") == of_model(real, (64, 64), 4, 2.5)
    file = checkpoint / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0}))
    assert SD3Backbone.meta_model(section(checkpoint), options).schedule(64, 64, 4) == Schedule(5.0)

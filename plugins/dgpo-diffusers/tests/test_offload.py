"""Group offloading of text encoders; moving weights needs a CUDA device, so that tests count the moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dgpo_core.errors import UserError
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_diffusers.offload import check_offload, offload, resident_bytes
from dgpo_diffusers.options import DiffusersOptions
from dgpo_diffusers.testing import tiny_clip, tiny_t5
from dgpo_schemas.sections.backbone import BackboneSection

CPU = torch.device("cpu")


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("level", ["block", "leaf"])
@pytest.mark.parametrize("make", [lambda: tiny_t5(32)[0], lambda: tiny_clip(16)[0]], ids=["t5", "clip"])
def test_few_weights_are_on_the_device_at_a_time(make: Any, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make(), torch.arange(3, 9)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids)[0]
    here: dict[int, int] = {}
    sizes: list[int] = []

    def onload(group: ModuleGroup) -> None:
        inside = (tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers()))
        here[id(group)] = sum(map(size, {*inside, *group.parameters, *group.buffers}))
        sizes.append(sum(here.values()))

    everything = sum(map(size, (*model.parameters(), *model.buffers())))
    staying, most = resident_bytes([model], level, size)
    offload([model], level, CPU, home=CPU)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: here.pop(id(group), None))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], wanted)
    assert sizes, "no hook was called"
    assert not here, "all weights are back"
    assert max(sizes) == most, "as planned"
    assert staying + most < everything or type(model).__name__.startswith("T5")


def test_the_plan_counts_the_weights_that_are_on_the_device() -> None:
    """In numbers of four bytes. T5's first block has a table of positions; the embedding of its tokens is on the device
    while the blocks run, CLIP's all the time, beside eight bytes of a table for each position."""
    t5 = T5EncoderModel(
        T5Config(vocab_size=50, d_model=8, d_kv=4, num_heads=3, d_ff=10, num_layers=3, feed_forward_proj="gated-gelu")
    )
    clip = CLIPTextModel(
        CLIPTextConfig(vocab_size=50, hidden_size=8, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
                       max_position_embeddings=9, bos_token_id=0, eos_token_id=1)
    )  # fmt: skip
    first_block = 4 * (8 * 12) + 32 * 3 + 3 * (8 * 10) + 2 * 8
    of_t5 = 4 * (50 * 8 + 8 + first_block)
    assert resident_bytes([t5], "block", size) == (0, of_t5)
    outside, block = 4 * ((50 + 9) * 8 + 2 * 8) + 8 * 9, 4 * (4 * 72 + 2 * 16 + 180 + 168)
    assert resident_bytes([clip], "block", size) == (outside, block)
    assert resident_bytes([clip, t5], "block", size) == (outside, max(block, of_t5)), "one after the other"
    assert resident_bytes([t5], "leaf", size) == (0, 4 * 50 * 8)
    assert resident_bytes([clip], "leaf", size) == (0, 4 * 50 * 8 + 8 * 9)


def test_a_backbone_reports_them(tmp_path: Path) -> None:
    checkpoint = make_tiny_flux(tmp_path / "tiny")
    section = BackboneSection.model_validate({"use": "flux", "checkpoint": str(checkpoint), "dtype": "bfloat16"})

    def reported(**options: Any) -> tuple[DiffusersBackbone, tuple[int, int]]:
        found = FluxBackbone.meta_model(section, FluxOptions.model_validate(options))
        return found, found.offloaded_bytes()

    whole, bytes_of_whole = reported(offload_text=True)
    encoders = (whole.pipeline.text_encoder, whole.pipeline.text_encoder_2)
    assert bytes_of_whole == (0, sum(2 * p.numel() for encoder in encoders for p in encoder.parameters()))
    assert reported(group_offload="leaf")[1] == resident_bytes(encoders, "leaf", size)
    assert reported()[1] == (0, 0)
    _, quantized = reported(group_offload="block", quantize="torchao-int8")
    plain = resident_bytes(encoders, "block", size)
    assert quantized[0] == plain[0]
    assert quantized[1] < plain[1], "quantized weights are smaller"


def test_it_needs_a_device_with_memory_of_its_own() -> None:
    found = DiffusersOptions.model_validate({"group_offload": "block"})
    text = r"^backbone\.options\.group_offload: this run is on the CPU .*, where nothing can be offloaded; leave it out"
    with pytest.raises(UserError, match=text):
        check_offload(found, CPU)
    for device in ("cuda", "meta"):
        check_offload(found, torch.device(device))
    check_offload(DiffusersOptions(), CPU)

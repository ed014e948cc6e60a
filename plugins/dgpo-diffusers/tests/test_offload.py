"""Group offloading of text encoders; moving weights needs a CUDA device, so that tests count the moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup

from dgpo_core.errors import UserError
from dgpo_diffusers.offload import check_offload, offload
from dgpo_diffusers.options import DiffusersOptions
from dgpo_diffusers.testing import tiny_clip, tiny_t5

CPU = torch.device("cpu")


@pytest.mark.parametrize("level", ["block", "leaf"])
@pytest.mark.parametrize("make", [lambda: tiny_t5(32)[0], lambda: tiny_clip(16)[0]], ids=["t5", "clip"])
def test_few_weights_are_on_the_device_at_a_time(make: Any, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make(), torch.arange(3, 9)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids)[0]
    here: dict[int, int] = {}
    sizes: list[int] = []

    def onload(group: ModuleGroup) -> None:
        weights = {p for module in group.modules for p in module.parameters()} | set(group.parameters)
        here[id(group)] = sum(p.numel() for p in weights)
        sizes.append(sum(here.values()))

    offload([model], level, CPU, home=CPU)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: here.pop(id(group), None))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], wanted)
    assert sizes, "no hook was called"
    assert not here, "all weights are back"
    assert max(sizes) < sum(p.numel() for p in model.parameters()) or type(model).__name__.startswith("T5")


@pytest.mark.parametrize("options, device, text", [
    ({}, "cpu", "this run is on the CPU .*, where nothing can be offloaded; leave it out"),
    ({"offload_text": True}, "cuda", "offload_text moves text encoders as a whole; leave one of the two out"),
    ({"quantize": "bnb-nf4"}, "cuda", "bnb-nf4 keeps text encoders on the device; use torchao-int8, or set"),
])  # fmt: skip
def test_what_contradicts_it_is_refused(options: dict[str, Any], device: str, text: str) -> None:
    found = DiffusersOptions.model_validate({"group_offload": "block", **options})
    with pytest.raises(UserError, match=rf"^backbone\.options\.group_offload: {text}"):
        check_offload(found, torch.device(device))
    check_offload(DiffusersOptions(), torch.device(device))
    check_offload(found, torch.device("meta"))

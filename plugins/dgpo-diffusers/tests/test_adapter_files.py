"""The formats that an adapter can be written in, and where diffusers finds its layers, by a family's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dgpo_core.lora import Pairs
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_diffusers.layout import Layout
from dgpo_schemas.sections.backbone import LoraSection


def prefixed(pairs: Pairs) -> Pairs:
    return {f"first.{name}": pair for name, pair in pairs.items()}


def adapter(**layout: Any) -> DiffusersAdapter:
    names: Mapping[str, Any] = {"backbone": "x", "family": "X", "vocabularies": {}, "lora_targets": ("to_q",)}
    network = nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(4, 6), "to_k": nn.Linear(4, 6)})})
    made = DiffusersAdapter(
        network,
        LoraSection(rank=2, alpha=6),
        layout=Layout(**{"pipeline": "FluxPipeline", "models": {}, **names, **layout}),
        base="x",
    )
    with torch.no_grad():
        for parameter in made.parameters().values():
            parameter.fill_(0.5)
    return made


@pytest.mark.parametrize(
    "programs, formats",
    [
        ({}, ("diffusers", "peft")),
        ({"original": prefixed}, ("diffusers", "peft", "kohya")),
        ({"comfyui": prefixed}, ("diffusers", "peft", "comfyui")),
        ({"original": prefixed, "comfyui": prefixed}, DiffusersAdapter.formats),
    ],
    ids=["neither", "kohya", "comfyui", "both"],
)
def test_a_format_is_offered_if_the_layout_has_its_names(
    programs: Mapping[str, Any], formats: tuple[str, ...], tmp_path: Path
) -> None:
    made = adapter(**programs)
    assert made.formats == formats
    for format in set(DiffusersAdapter.formats) - set(formats):
        with pytest.raises(ValueError, match=f"{format}: the formats are {', '.join(formats)}"):
            made.save(tmp_path, format)
    assert not list(tmp_path.iterdir())
    for format in formats[2:]:
        made.save(tmp_path, format)
        (path,) = tmp_path.iterdir()
        start = "lora_unet_first_attn_to_q" if format == "kohya" else "first.attn.to_q"
        assert set(load_file(path)) == {f"{start}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}


@pytest.mark.parametrize("denoiser, pipeline", [("transformer", "FluxPipeline"), ("unet", "StableDiffusionXLPipeline")])
def test_diffusers_finds_it_below_the_denoisers_name(denoiser: str, pipeline: str, tmp_path: Path) -> None:
    adapter(denoiser=denoiser, pipeline=pipeline).save(tmp_path, "diffusers")
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    layer = f"{denoiser}.attn.to_q"
    assert set(tensors) == {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"}
    assert torch.equal(tensors[f"{layer}.lora_B.weight"], torch.full((6, 2), 1.5))  # 0.5 * alpha / rank
    assert (metadata[f"{denoiser}.r"], metadata[f"{denoiser}.lora_alpha"]) == (2, 2)

"""Rank-stabilized LoRA and DoRA in diffusers' pipelines, and in the files of other programs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.families.proof import among, build, load, proofs
from tests.families.test_starting import FILE, LAYERS, Make, denoiser, started

each = pytest.mark.parametrize("name", among(["flux", "sdxl", "wan"], quick=["flux"]))
KINDS: list[dict[str, Any]] = [{"rslora": True}, {"dora": True}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["rslora", "dora"])


def moved(name: str, directory: Path, **lora: Any) -> Any:
    adapter = build(proofs()[name], directory, lora={"rank": 4, "alpha": 6, **lora}).adapter
    with torch.no_grad():
        for i, (key, parameter) in enumerate(adapter.parameters().items()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).clamp(-2, 2)
            parameter.copy_(parameter * (1 + 0.3 * noise) if "magnitude" in key else 0.2 * noise)
    return adapter


def weights(adapter: Any) -> dict[str, Tensor]:
    return {name: adapter.adapted(layer) for name, layer in adapter.layers.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert_close(found[name], weight, atol=3e-6, rtol=0, msg=name)


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no metadata"])
@kinds
@each
def test_diffusers_reads_it(checkpoint: Make, name: str, kind: dict[str, Any], metadata: bool, tmp_path: Path) -> None:
    proof, directory = proofs()[name], checkpoint(name)
    adapter = moved(name, directory, **kind)
    adapter.save(tmp_path, "diffusers")
    if not metadata:
        save_file(load_file(tmp_path / FILE), tmp_path / FILE)
    pipeline = load(proof, directory)
    before = copy.deepcopy(denoiser(proof, pipeline).state_dict())
    pipeline.load_lora_weights(tmp_path)
    denoiser(proof, pipeline).fuse_lora()
    pipeline.unload_lora_weights()
    after = denoiser(proof, pipeline).state_dict()
    expected = weights(adapter)
    same({layer: after[f"{layer}.weight"] for layer in expected}, expected)
    assert all(torch.equal(after[key], before[key]) for key in before if key.removesuffix(".weight") not in expected)


@kinds
@each
def test_every_format_is_read_again(checkpoint: Make, name: str, kind: dict[str, Any], tmp_path: Path) -> None:
    adapter = moved(name, checkpoint(name), **kind)
    for format in adapter.formats:
        adapter.save(tmp_path / format, format)
        again = started(proofs()[name], checkpoint(name), tmp_path / format, **kind)
        same(weights(again), weights(adapter))
        assert again.notes == []


def test_what_cannot_express_it_is_not_offered(checkpoint: Make) -> None:
    """kohya's `linear1` of FLUX.1 joins `proj_mlp`, which is not adapted by default, with three that are."""
    assert moved("flux", checkpoint("flux"), dora=True).formats[:2] == ("diffusers", "peft")
    for name, kohya in (("flux", False), ("sdxl", True), ("wan", True)):
        formats = moved(name, checkpoint(name), dora=True).formats
        assert ("kohya" in formats, "comfyui" in formats) == (kohya, False)
    joined = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp"]
    assert "kohya" in moved("flux", checkpoint("flux"), dora=True, targets=joined).formats


def test_kohyas_scale(checkpoint: Make, tmp_path: Path) -> None:
    """LyCORIS: dora_scale [outputs, 1] is the norm of each row of W + alpha / rank * up @ down."""
    adapter = moved("wan", checkpoint("wan"), dora=True, targets=LAYERS["wan"])
    adapter.save(tmp_path, "kohya")
    tensors, layer = load_file(tmp_path / FILE), "lora_unet_blocks_0_self_attn_q"
    base = load(proofs()["wan"], checkpoint("wan")).transformer.get_parameter("blocks.0.attn1.to_q.weight").double()
    down, up = (tensors[f"{layer}.lora_{way}.weight"].double() for way in ("down", "up"))
    whole = base + float(tensors[f"{layer}.alpha"]) / len(down) * up @ down
    weight = tensors[f"{layer}.dora_scale"].double() * whole / whole.norm(dim=1, keepdim=True)
    assert_close(weights(adapter)["blocks.0.attn1.to_q"].double(), weight.detach(), atol=2e-6, rtol=0)

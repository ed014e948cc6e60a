"""A denoiser exported with its adapter merged; the judge is diffusers' pipeline with base and adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgpo_core.errors import UserError
from dgpo_kit.drawing import randomize
from tests.families.proof import among, build, by_pipeline, load, noise_of, proofs
from tests.families.test_starting import Make, denoiser

each = pytest.mark.parametrize("name", among(["flux", "sdxl", "wan"], quick=["flux"]))


@each
def test_it_draws_the_same_images(checkpoint: Make, name: str, tmp_path: Path) -> None:
    proof = proofs()[name]
    size = proof.sizes[0]
    case, pipeline = list(proof.cases.values())[-1], load(proof, checkpoint(name))
    backbone = build(proof, checkpoint(name), case.options)
    randomize(backbone)
    noise = noise_of(backbone, size, 1)
    before = copy.deepcopy(backbone.network.state_dict())
    backbone.save_merged(tmp_path / "merged", None)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.network.state_dict().items())
    backbone.adapter.save(tmp_path / "adapter", "diffusers")
    base = by_pipeline(proof, pipeline, case, noise, size, "pt")
    network = denoiser(proof, pipeline)
    merged = type(network).from_pretrained(tmp_path / "merged")
    assert merged.state_dict().keys() == network.state_dict().keys()
    pipeline.load_lora_weights(tmp_path / "adapter")
    expected = by_pipeline(proof, pipeline, case, noise, size, "pt")
    pipeline.unload_lora_weights()
    setattr(pipeline, proof.kind.layout.denoiser, merged)
    found = by_pipeline(proof, pipeline, case, noise, size, "pt")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((expected - base).abs().max()) > 1e-3, "the comparison means nothing without an effect"


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
@each
def test_its_weights_in_both_types(checkpoint: Make, name: str, lora: dict[str, Any], tmp_path: Path) -> None:
    """Merged in float32, then rounded once; the rest of the model is as it was."""
    proof = proofs()[name]
    backbone = build(proof, checkpoint(name), dtype="bfloat16", lora={"rank": 4, "alpha": 12, **lora})
    randomize(backbone)
    kind, weights = type(backbone.network), backbone.network.state_dict()
    for asked, dtype in ((None, torch.bfloat16), ("float32", torch.float32)):
        backbone.save_merged(tmp_path / str(asked), asked)
        assert kind.from_pretrained(tmp_path / str(asked), torch_dtype=dtype).dtype == dtype
        found = load_file(tmp_path / str(asked) / "diffusion_pytorch_model.safetensors")
        assert len(found) == len([key for key in weights if ".lora_" not in key])
        for key, tensor in found.items():
            layer = backbone.adapter.layers.get(key.removesuffix(".weight"))
            base = weights.get(key, weights.get(key.replace(".weight", ".base_layer.weight")))
            base = weights[key.replace(".bias", ".base_layer.bias")] if base is None else base
            wanted = base if layer is None or key.endswith(".bias") else backbone.adapter.adapted(layer)
            # some weights of Wan are float32 whatever the dtype of the model
            assert tensor.dtype == (dtype if asked or base.dtype == dtype else torch.float32), key
            assert torch.equal(tensor, wanted.to(tensor.dtype)), key


def test_a_quantized_base_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    backbone = build(proofs()["wan"], checkpoint("wan"))
    backbone.network.hf_quantizer = object()
    with pytest.raises(UserError, match=r"^--format merged: the base weights are quantized, and rounding would lose"):
        backbone.save_merged(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_packed_weights_are_refused_before_anything_is_merged(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes of 4-bit weights are not those of the update."""
    backbone = build(proofs()["flux"], checkpoint("flux"))
    monkeypatch.setattr("dgpo_diffusers.merging.is_quantized", lambda network: True)
    monkeypatch.setattr(backbone.adapter, "merged_weights", lambda: pytest.fail("merged"))
    with pytest.raises(UserError, match=r"^--format merged: the base weights are quantized"):
        backbone.save_merged(tmp_path, None)

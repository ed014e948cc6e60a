"""Quantized frozen weights. What needs torchao or a CUDA device is skipped without."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_diffusers import quantization
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from dgpo_diffusers.quantized import dequantize_again, is_quantized, layers_to_quantize, stored_bytes
from dgpo_kit.contracts import check_backbone
from dgpo_kit.drawing import randomize
from dgpo_schemas.sections.backbone import BackboneSection

torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
METHODS = ["torchao-int8", "torchao-float8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


def section_of(checkpoint: Path, **more: Any) -> BackboneSection:
    lora = {} if more.get("train") == "full" else {"lora": {"rank": 2, "alpha": 4}}
    return BackboneSection.model_validate({"use": "flux", "checkpoint": str(checkpoint), **lora, **more})


def build(checkpoint: Path, quantize: Any = None, *, offload_text: bool = False, **more: Any) -> FluxBackbone:
    options = FluxOptions.model_validate({"quantize": quantize, "offload_text": offload_text})
    return FluxBackbone(section_of(checkpoint, **more), options, device=torch.device("cpu"))


def velocity(backbone: FluxBackbone) -> torch.Tensor:
    shape = backbone.latent_shape(32, 32)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    given = backbone.encode([Prompt(text, size=(32, 32)) for text in ("a red cube", "two dogs")])
    return backbone.velocity(x, torch.tensor([0.9, 0.3]), given)


def test_layers_outside_of_blocks_are_spared(checkpoint: Path) -> None:
    """FLUX has a layer proj_out at the end, and one in each block."""
    backbone = build(checkpoint)
    found = layers_to_quantize(backbone.pipeline.text_encoder_2)
    assert "encoder.block.0.layer.0.SelfAttention.q" in found
    meta = FluxBackbone.meta_model(backbone.section.model_copy(update={"train": "full"}), FluxOptions())
    found = layers_to_quantize(meta.network)
    assert "single_transformer_blocks.1.proj_out" in found
    assert not {"proj_out", "x_embedder", "norm_out.linear", "context_embedder"} & set(found)


@torchao
@pytest.mark.filterwarnings("ignore")  # of the library
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_trains_on_quantized_weights(checkpoint: Path, method: str) -> None:
    plain, backbone = build(checkpoint), build(checkpoint, method)
    network = backbone.network
    layer = network.transformer_blocks[0].attn.to_q.get_base_layer()
    assert type(layer.weight).__module__.startswith("torchao")
    assert type(network.single_transformer_blocks[0].proj_out.weight).__module__.startswith("torchao")
    assert type(network.proj_out.weight) is nn.Parameter
    assert type(backbone.vae.decoder.conv_in.weight) is nn.Parameter
    assert {p.dtype for p in backbone.trainable().values()} == {torch.float32}
    weight = plain.network.transformer_blocks[0].attn.to_q.get_base_layer().weight
    steps = 127 if method == "torchao-int8" else 16  # float8 has 3 bits behind the first
    error = (layer.weight.dequantize() - weight).abs()
    assert bool((error <= weight.abs().amax(1, keepdim=True) / steps).all())
    assert bool(error.any())
    for one in (plain, backbone):
        randomize(one)
    found, wanted = velocity(backbone), velocity(plain)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.1
    torch.autograd.backward(found.square().mean())
    gradients = [p.grad for p in backbone.trainable().values()]
    assert all(g is not None and bool(g.any()) for g in gradients)
    assert backbone.adapter is not None
    with backbone.adapter.off():
        assert not torch.equal(velocity(backbone), found)
    assert backbone.adapter.merged() is None


@torchao
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_dequantized_weights_are_kept_for_the_backward_pass(
    checkpoint: Path, method: str, checkpointing: bool
) -> None:
    """The gradient is that of a model with the dequantized weights, up to rounding."""
    denoiser = {"method": method, "components": ["denoiser"]}
    backbone, plain = build(checkpoint, denoiser, gradient_checkpointing=checkpointing), build(checkpoint)
    for layer, module in plain.network.named_modules():
        weight = getattr(backbone.network.get_submodule(layer), "weight", None)
        if isinstance(module, nn.Linear) and type(weight).__module__.startswith("torchao"):
            assert weight is not None
            module.weight.data = weight.dequantize()
    sizes: list[int] = []
    gradients: list[list[Any]] = []
    for one in (backbone, plain):
        randomize(one)
        weights = {p.data_ptr() for p in one.network.parameters() if type(p) is nn.Parameter}
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = velocity(one)
        sizes.append(sum(t.numel() for t in kept if t.data_ptr() not in weights))
        torch.autograd.backward(output.square().mean())
        gradients.append([p.grad for p in one.trainable().values()])
    assert sizes[0] == sizes[1] > 0 or checkpointing, "activations alone"
    for found, wanted in zip(*gradients, strict=True):
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_an_adapter_of_dequantized_products_is_fast_too(checkpoint: Path) -> None:
    """Layers with a product of their own, here of their weights as they are, have the gradient of linear layers."""
    gradients = []
    for dequantizing in (True, False):
        backbone = build(checkpoint, dtype="bfloat16")
        assert backbone.adapter is not None
        layers = backbone.adapter.layers.values()  # type: ignore[attr-defined]
        dequantize_again(layer.get_base_layer() for layer in layers if dequantizing)
        randomize(backbone)
        backbone.speed_up(["adapter"])
        velocity(backbone).square().mean().backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.trainable().values() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.01


@torchao
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_contract(checkpoint: Path) -> None:
    check_backbone(lambda: build(checkpoint, "torchao-int8"), (32, 32))


@torchao
@pytest.mark.filterwarnings("ignore")
def test_full_fine_tuning_may_quantize_text_encoders(checkpoint: Path) -> None:
    backbone = build(checkpoint, {"method": "torchao-int8", "components": ["text_encoders"]}, train="full")
    assert is_quantized(backbone.pipeline.text_encoder_2)
    assert not is_quantized(backbone.network)


def test_what_cannot_work_is_refused_before_anything_is_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str, quantize: Any, **more: Any) -> None:
        with pytest.raises(UserError, match=rf"^backbone\.options\.quantize: {text}") as caught:
            build(Path("nowhere"), quantize, **more)
        assert "\n" not in str(caught.value)

    refused("train: full trains the denoiser's weights, .* set `train: lora`, or", "torchao-int8", train="full")
    found: Any = object()
    monkeypatch.setattr(quantization, "find_spec", lambda name: found)
    refused("bnb-nf4 requires a CUDA device, and this run is on cpu; use torchao-int8 there", "bnb-nf4")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    refused(r"torchao-int8 requires torchao, which is not installed: pip install 'dgpo-diffusers\[q", "torchao-int8")
    refused("bnb-int8 requires bitsandbytes, which is not installed", "bnb-int8")


@pytest.mark.parametrize("method, fraction", [("torchao-int8", 1 / 2), ("bnb-nf4", (1 / 2 + 4 / 64) / 2)])
def test_a_plan_counts_fewer_bytes(checkpoint: Path, method: str, fraction: float) -> None:
    """Of bfloat16 weights; scales of int8 are one float32 for each output."""
    options = FluxOptions.model_validate({"quantize": method})
    meta = FluxBackbone.meta_model(section_of(checkpoint, dtype="bfloat16"), options)
    layer = meta.network.transformer_blocks[0].ff.net[2]
    outputs, inputs = layer.weight.shape
    scales = 4 * outputs if method == "torchao-int8" else 0
    assert meta.weight_bytes(layer.weight) == 2 * outputs * inputs * fraction + scales
    adapted = meta.network.transformer_blocks[0].attn.to_q
    assert meta.weight_bytes(adapted.get_base_layer().weight) == stored_bytes(method, adapted.get_base_layer().weight)
    assert meta.weight_bytes(adapted.lora_A["default"].weight) == 4 * adapted.lora_A["default"].weight.numel()
    assert meta.weight_bytes(meta.network.proj_out.weight) == 2 * meta.network.proj_out.weight.numel()


def test_models_that_stay_in_float32_are_not_quantized(checkpoint: Path) -> None:
    """Such as an image encoder among the encoders."""
    family = build(checkpoint)
    family.options = FluxOptions.model_validate({"quantize": {"method": "bnb-int8", "components": ["text_encoders"]}})
    assert quantization.chosen(family) == {"text_encoder": "bnb-int8", "text_encoder_2": "bnb-int8"}
    family.layout = replace(FluxBackbone.layout, exact=("vae", "text_encoder"))  # type: ignore[misc]
    assert quantization.chosen(family) == {"text_encoder_2": "bnb-int8"}


def test_dora_needs_the_norms_of_the_weights(checkpoint: Path) -> None:
    lora = {"rank": 2, "alpha": 4, "dora": True}
    with pytest.raises(UserError, match=r"^backbone\.options\.quantize: DoRA reads the norms of the weights"):
        build(checkpoint, "torchao-int8", lora=lora)

"""Attention layers that do not read the signatures of their processors again compute the same."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models import attention_processor
from diffusers.models.transformers import transformer_flux
from torch import Tensor, nn

from dgpo_diffusers.signatures import remember_signatures


def sd3() -> tuple[nn.Module, Any, dict[str, Tensor]]:
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 3, 16),
        "pooled_projections": torch.randn(2, 16), "timestep": torch.tensor([500.0, 100.0]),
    }  # fmt: skip
    return network, attention_processor, inputs


def flux() -> tuple[nn.Module, Any, dict[str, Tensor]]:
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 6, 4), "encoder_hidden_states": torch.randn(2, 3, 16),
        "pooled_projections": torch.randn(2, 16), "timestep": torch.tensor([0.5, 0.1]),
        "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip
    return network, transformer_flux, inputs


def processors(network: nn.Module) -> list[Any]:
    return [module.processor for module in network.modules() if getattr(module, "processor", None) is not None]


@pytest.mark.parametrize("make", [sd3, flux])
def test_it_computes_the_same_without_reading_them(
    make: Callable[[], tuple[nn.Module, Any, dict[str, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, module, inputs = make()
    network.eval()
    expected = network(**inputs).sample
    names = set(network.state_dict())
    known = [inspect.signature(one.__call__) for one in processors(network)]
    assert len(known) >= 2
    remember_signatures(network)
    remember_signatures(network)  # again changes nothing
    assert [inspect.signature(one.__call__) for one in processors(network)] == known
    assert set(network.state_dict()) == names

    read: list[Any] = []
    signature = inspect._signature_from_function  # type: ignore[attr-defined]
    monkeypatch.setattr(inspect, "_signature_from_function", lambda *g, **k: (read.append(g), signature(*g, **k))[1])
    assert torch.equal(network(**inputs).sample, expected)
    assert torch.equal(copy.deepcopy(network)(**inputs).sample, expected)
    assert not read, "diffusers reads no signature"
    assert module.inspect is inspect, "where diffusers would read it"
    network(**inputs).sample.sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if "to_q" in name)


def test_a_call_by_name_is_a_call() -> None:
    network, _, _ = sd3()
    remember_signatures(network)
    layer = next(module for module in network.modules() if getattr(module, "processor", None) is not None)
    x, text = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    by_name = layer.processor.__call__(layer, x, text)  # type: ignore[union-attr]
    assert all(map(torch.equal, by_name, layer(x, text)))

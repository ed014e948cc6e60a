"""By how much a merged layer may differ from one with its adapter beside it; the judge is float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.lora import LoraAdapter
from dgpo_schemas.sections.backbone import LoraSection

INPUTS, OUTPUTS, RANK, ALPHA = 48, 40, 6, 9.0
UNIT = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Relative error of rounding to a type's nearest number; the sum is computed in float32 already."""
KINDS: list[dict[str, Any]] = [{}, {"rslora": True}, {"dora": True}]


def adapter_of(dtype: torch.dtype, size: float, **kind: Any) -> LoraAdapter:
    """The adapter of a layer in `dtype`, with an update of about `size` times the weights."""
    generator = torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Linear(INPUTS, OUTPUTS))
    with torch.no_grad():
        network[0].weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator))
    network.to(dtype)
    section = LoraSection.model_validate({"rank": RANK, "alpha": ALPHA, **kind})
    adapter = LoraAdapter(network, section, targets=("0",), base="")
    with torch.no_grad():
        for name, p in adapter.parameters().items():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(p * (1 + 0.2 * noise.clamp(-2, 2)) if "magnitude" in name else (size / RANK) ** 0.5 * noise)
    return adapter


def exact_and_bound(adapter: LoraAdapter, dtype: torch.dtype, **kind: Any) -> tuple[Tensor, Tensor]:
    """The merged weight in float64, and the bound of the docstring of `LoraAdapter.merged`."""
    (layer,) = adapter.layers.values()
    weight = layer.get_base_layer().weight.detach().double()
    matrices = {name: p.detach().double() for name, p in adapter.parameters().items()}
    down, up = (matrices[f"0.lora_{m}.default.weight"] for m in "AB")
    scale = ALPHA / (RANK**0.5 if kind.get("rslora") else RANK)
    exact, size = weight + scale * up @ down, weight.abs() + scale * up.abs() @ down.abs()
    terms = RANK + 4
    if kind.get("dora"):
        factor = matrices["0.lora_magnitude_vector.default.weight"] / exact.norm(dim=1)
        exact, size = factor[:, None] * exact, factor.abs()[:, None] * size
        terms += INPUTS + 2  # the norm of a row
    return exact, UNIT[dtype] * exact.abs() + terms * 2.0**-23 * size


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
@torch.no_grad()
def test_a_merged_weight_is_off_by_one_rounding(dtype: torch.dtype, kind: dict[str, Any], size: float) -> None:
    adapter = adapter_of(dtype, size, **kind)
    exact, bound = exact_and_bound(adapter, dtype, **kind)
    (wrapped,) = adapter.layers.values()
    before = wrapped.get_base_layer().weight.clone()
    x = torch.randn(16, INPUTS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    merging = adapter.merged()
    assert merging is not None
    with merging:
        merged = wrapped.get_base_layer().weight
        assert merged.dtype == dtype
        error = (merged.double() - exact).abs()
        assert bool((error <= bound).all())
        assert bool((x @ merged.double().T - x @ exact.T).abs().le(x.abs() @ bound.T + 1e-12).all())
    assert torch.equal(wrapped.get_base_layer().weight, before)
    if UNIT[dtype]:
        assert float((error / bound).max()) > 0.8, "the bound is tight"


@torch.no_grad()
def test_bfloat16_loses_updates_that_are_small_beside_the_weights() -> None:
    """Below half of the distance to the next number, nothing of them is left."""
    adapter = adapter_of(torch.bfloat16, 1e-6)
    (wrapped,) = adapter.layers.values()
    base = wrapped.get_base_layer().weight.clone()
    update = adapter.adapted(wrapped) - base.float()
    merging = adapter.merged()
    assert merging is not None
    with merging:
        kept = wrapped.get_base_layer().weight.float() - base.float()
    small = update.abs() < 2.0**-10 * base.float().abs()
    assert float(small.float().mean()) > 0.9
    assert not bool(kept[small].any())
    assert bool(update[small].any())

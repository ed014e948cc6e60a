"""`precision.adapter: fast` and `precision.norms: fast` on every family: as near to float32 as autocast is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.types import Prompt
from tests.families.proof import TEXTS, Proof, among, build, proofs

FAMILIES = {name: proof for name, proof in proofs().items() if "," not in name}
each = pytest.mark.parametrize("name", among(FAMILIES, quick=["sd3"]))
SIGMA = 0.5
"""Which bfloat16 can hold, and 1,000 times it: otherwise models that round their time have no smaller error."""
DRAWS, BOUND = 4, 1.2
LEFT = {
    "qwen-image-2.1": "1 QwenImage21AdaLayerNormContinuous, 1 QwenImage21ZeroCenterRMSNorm",
    "wan": "7 FP32LayerNorm",
    "wan-i2v": "9 FP32LayerNorm",
}
"""Normalization layers without a fused form: two outside of the blocks, and one that models give float32."""


class _LikeCuda(nn.LayerNorm):
    """CUDA's autocast computes layer norms in float32 and leaves their outputs in it; the CPU's does not."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        weight, bias = (None if t is None else t.float() for t in (self.weight, self.bias))
        return nn.functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


def made(proof: Proof, directory: Path, dtype: str, parts: Collection[str] = ()) -> tuple[Any, str]:
    """A backbone with frozen weights that bfloat16 can hold and an adapter that does something."""
    backbone = build(proof, directory, next(iter(proof.cases.values())).options, dtype=dtype)
    for parameter in (p for net in (backbone.network, *backbone.others.values()) for p in net.parameters()):
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    with torch.no_grad():
        for i, parameter in enumerate(backbone.adapter.parameters().values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    said = backbone.speed_up(parts).get("norms", "") if parts else ""
    for module in backbone.network.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = _LikeCuda
    return backbone, said


Pass = tuple[Tensor, Tensor]


def passes(proof: Proof, backbone: Any) -> Iterator[Pass]:
    """The velocity and the gradients of the adapter, under autocast if the weights are bfloat16."""
    case, size = next(iter(proof.cases.values())), proof.sizes[0]
    prompts = [Prompt(text, negative=case.negative, media=case.media(i), size=size) for i, text in enumerate(TEXTS)]
    conditioning = backbone.encode(prompts)
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(prompts), *backbone.latent_shape(*size), generator=generator).bfloat16().float()
        for parameter in backbone.adapter.parameters().values():
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
            velocity = backbone.velocity(x, torch.full((len(x),), SIGMA), conditioning)
        velocity.backward(torch.randn(velocity.shape, generator=generator))
        gradients = [p.grad for p in backbone.adapter.parameters().values() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        yield velocity.detach().double(), torch.cat([gradient.double().flatten() for gradient in gradients])


def errors(found: Iterable[Pass], exact: Iterable[Pass]) -> Tensor:
    """The mean relative errors of the velocity and of the gradients, [2]."""
    relative = [
        [float((a - b).norm() / b.norm()) for a, b in zip(*both, strict=True)]
        for both in zip(found, exact, strict=True)
    ]
    return torch.tensor(relative).mean(0)


@each
def test_it_is_as_near_to_float32_as_autocast(checkpoint: Callable[[str], Path], name: str) -> None:
    proof, directory = FAMILIES[name], checkpoint(name)
    exact = list(passes(proof, made(proof, directory, "float32")[0]))
    today = errors(passes(proof, made(proof, directory, "bfloat16")[0]), exact)
    for parts in (["adapter"], ["norms"], ["adapter", "norms"]):
        backbone, said = made(proof, directory, "bfloat16", parts)
        assert (errors(passes(proof, backbone), exact) < BOUND * today).all(), parts
        if "norms" in parts:
            assert said.partition("; exact: ")[2] == LEFT.get(name, "")

"""Fused normalization layers against diffusers' own, in float64 and in bfloat16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models import normalization
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgpo_diffusers.norms import FORWARDS, fuse_norms

WIDTH = 24

MAKE: dict[type, Callable[[], nn.Module]] = {
    normalization.RMSNorm: lambda: normalization.RMSNorm(WIDTH, eps=1e-6),
    normalization.AdaLayerNormZero: lambda: normalization.AdaLayerNormZero(WIDTH),
    normalization.AdaLayerNormZeroSingle: lambda: normalization.AdaLayerNormZeroSingle(WIDTH),
    normalization.SD35AdaLayerNormZeroX: lambda: normalization.SD35AdaLayerNormZeroX(WIDTH),
    normalization.AdaLayerNormContinuous: lambda: normalization.AdaLayerNormContinuous(
        WIDTH, WIDTH, elementwise_affine=False
    ),
}
each = pytest.mark.parametrize("kind", FORWARDS, ids=lambda kind: kind.__name__)


def made(kind: type, dtype: torch.dtype) -> nn.Module:
    """A layer with weights that bfloat16 can hold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = MAKE[kind]()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, 0.1, 0.5)
    return layer.bfloat16().to(dtype).requires_grad_(False)


def fused(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    assert fuse_norms([layer]).fused.total() == 1
    return layer


def passed(layer: Any, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """All outputs, in float64, and the gradient of x [B, ..., D]."""
    x = x.to(dtype).requires_grad_()
    embedding = torch.randn(len(x), WIDTH, generator=torch.Generator().manual_seed(8)).bfloat16().to(dtype)
    found = layer(x) if isinstance(layer, normalization.RMSNorm) else _modulated(layer, x, embedding)
    outputs = found if isinstance(found, tuple) else (found,)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(outputs[0].dtype)
    outputs[0].backward(gradient)
    assert x.grad is not None
    return [output.detach().double() for output in (*outputs, x.grad)]


def _modulated(layer: Any, x: Tensor, embedding: Tensor) -> Any:
    if isinstance(layer, normalization.AdaLayerNormContinuous):
        return layer(x, embedding)
    return layer(x, emb=embedding)


def drawn(*shape: int) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(2)) + 1).bfloat16().float()


@each
def test_it_is_the_layer_of_diffusers(kind: type) -> None:
    layer = made(kind, torch.float64)
    for ours, theirs in zip(
        passed(fused(layer), drawn(3, 5, WIDTH), torch.float64),
        passed(layer, drawn(3, 5, WIDTH), torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if kind is normalization.RMSNorm else 1e-12)


@each
def test_its_error_in_bfloat16_is_no_larger(kind: type) -> None:
    """The bound of `precision.norms: fast`: 1.1 times the error of diffusers' operations, of outputs and gradient."""
    x = drawn(3, 50, WIDTH)
    exact = passed(made(kind, torch.float64), x, torch.float64)
    layer = made(kind, torch.bfloat16)
    ours, theirs = passed(fused(layer), x, torch.bfloat16), passed(layer, x, torch.bfloat16)
    for a, b, judge in zip(ours, theirs, exact, strict=True):
        assert 0 < float((a - judge).norm()) <= 1.1 * float((b - judge).norm())


def test_weights_of_another_dtype_are_left_to_diffusers() -> None:
    """Models that are kept in float32 in part; and float32 weights under autocast."""
    layer, x = made(normalization.RMSNorm, torch.float32), drawn(3, 5, WIDTH).bfloat16()
    assert torch.equal(fused(layer)(x), layer(x))


def test_heads_are_not_copied() -> None:
    """[B, heads, S, D], a view of [B, S, heads, D], is normalized where it is."""
    layer = fused(made(normalization.RMSNorm, torch.float32))
    x = drawn(2, 5, 3, WIDTH).transpose(1, 2)
    out = layer(x)
    assert out.transpose(1, 2).is_contiguous()
    assert torch.equal(out, layer(x.contiguous()))


class Kernels(TorchDispatchMode):
    """Counts operations that read and write values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if all(output.alias_info is None for output in function._schema.returns):
            self.counts[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_shift_and_scale_are_one_operation() -> None:
    counts: list[Counter[str]] = []
    for layer in (made(normalization.AdaLayerNormZeroSingle, torch.bfloat16),) * 2:
        layer = fused(layer) if counts else layer
        with torch.no_grad(), Kernels() as kernels:
            layer(drawn(3, 5, WIDTH).bfloat16(), emb=torch.ones(3, WIDTH, dtype=torch.bfloat16))
        counts.append(kernels.counts)
    assert counts[0] - counts[1] == Counter({"mul": 1, "add": 1})
    assert counts[1] - counts[0] == Counter({"addcmul": 1})


class OddNorm(nn.Module):
    pass


def test_what_is_unknown_is_left_and_counted() -> None:
    network = nn.ModuleList([
        made(normalization.RMSNorm, torch.float32), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), OddNorm(),
        OddNorm(), nn.Linear(2, 2),
    ])  # fmt: skip
    before = list(network.state_dict())
    found = fuse_norms([network])
    assert (found.fused, found.left) == (Counter({"RMSNorm": 1}), Counter({"OddNorm": 2}))
    assert str(found) == "1 RMSNorm; exact: 2 OddNorm"
    assert str(fuse_norms([nn.Linear(2, 2)])) == "none that is not fused already"
    assert list(network.state_dict()) == before
    assert isinstance(network[0], normalization.RMSNorm)

"""The backward pass of imitated devices against torch's engine: gradients on real tensors, kernels on tensors without
values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dgpo_lab.planning.backward import walk
from dgpo_lab.planning.meter import Lap, Meter
from dgpo_lab.planning.shapes import CPU, CUDA

Loss = Callable[[nn.Module, Tensor], Tensor]


class Scaled(torch.autograd.Function):
    """A function in Python: an argument that is no tensor, and one that needs no gradient."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, fixed: Tensor, y: Tensor) -> Tensor:
        ctx.factor = factor
        ctx.save_for_backward(fixed)
        return factor * x * fixed + y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (fixed,) = ctx.saved_tensors
        return None, ctx.factor * gradients[0] * fixed, None, gradients[0]


def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def broadcast(net: nn.Module, x: Tensor) -> Tensor:
    """A row for all samples, a tensor that is used three times, one that is not used."""
    y = net(x)
    unused, row = (y[:1] * 2).chunk(2, 1)
    assert unused.shape[0] == 1
    return (y * y + row.repeat(1, 2) * y).sum()


def python(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    return Scaled.apply(3.0, y, x, y.exp()).sum()  # type: ignore[no-untyped-call]


def recomputed(net: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(net, x.requires_grad_(), use_reentrant=False)
    return checkpoint(net, y, use_reentrant=False).square().sum()


def mixed(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        y = net(x)
        return functional.layer_norm(y + net(y), (8,)).float().sum()


LOSSES = [plain, broadcast, python, recomputed, mixed]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_those_of_the_engine(loss: Loss) -> None:
    """Twice, so that gradients are added to others."""
    torch.manual_seed(0)
    model, x, found = net(), torch.randn(4, 8), []
    for backward in (Tensor.backward, walk):
        model.zero_grad()
        for _ in range(2):
            backward(loss(model, x.clone()))  # type: ignore[operator]
        found.append([p.grad for p in model.parameters()])
    for engine, walked in zip(*found, strict=True):
        assert engine is not None
        assert walked is not None
        torch.testing.assert_close(engine, walked, rtol=0, atol=0)


def counted(loss: Loss, device: torch.device, backward: Callable[[Tensor], Any]) -> tuple[Lap, Lap]:
    with torch.device("meta"):
        model = net()
    with Meter("here", model, device=device) as meter:
        x = torch.empty(512, 8, device=device)
        with meter.lap() as forward:
            output = loss(model, x)
        with meter.lap() as lap:
            backward(output)
    return forward, lap


@pytest.mark.parametrize("loss", LOSSES)
def test_kernels_equal_those_of_the_engine(loss: Loss) -> None:
    def names(lap: Lap) -> Counter[str]:
        found: Counter[str] = Counter()
        for kernel, count in lap.kernels.items():
            found[kernel.name.removesuffix("_")] += count  # a sum of gradients may be in place
        return found

    engine, walked = (counted(loss, CPU, way)[1] for way in (Tensor.backward, walk))
    assert names(walked) == names(engine)
    assert walked.operations == engine.operations


@pytest.mark.parametrize("loss", [plain, broadcast, python, recomputed])
def test_an_imitated_device_computes_the_same(loss: Loss) -> None:
    """Without autocast, whose rules differ between devices."""
    here, there = (counted(loss, device, Tensor.backward) for device in (CPU, CUDA))
    for one, other in zip(here, there, strict=True):
        assert (one.launches, one.operations) == (other.launches, other.operations)


def test_a_graph_is_freed() -> None:
    forward, lap = counted(plain, CUDA, Tensor.backward)
    assert forward.left > 0
    assert lap.left == -forward.left + sum(4 * p.numel() for p in net().parameters()) + 4  # gradients, and the loss


def test_what_a_walk_cannot_do() -> None:
    with pytest.raises(NotImplementedError, match="keep its graph"):
        walk(net()(torch.zeros(1, 8)).sum(), retain_graph=True)

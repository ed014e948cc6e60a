"""The forward and backward passes of adapted layers: `exact` has peft's bits, `fast` the accuracy of autocast.

The judges are peft's own layers, and the same network in float64.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dgpo_core.lora import LoraAdapter
from dgpo_core.lora.layers import copies_of
from dgpo_schemas.sections.backbone import LoraSection

WIDTH, TARGETS = 16, ["q", "k", "v", "out"]


class Block(nn.Module):
    """Attention whose projections share an input, and a projection of a view that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (True, True, False))
        self.out, self.mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (2, -1)).transpose(-3, -2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
        joined = torch.cat([attended, attended], dim=-2)[..., : x.shape[-2], :]
        total: Tensor = x + self.mlp(F.gelu(x + self.out(joined)))
        return total


def network(dtype: torch.dtype) -> nn.Module:
    """Two blocks with weights that bfloat16 can hold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(Block(), Block()).requires_grad_(False).eval().bfloat16().to(dtype)


def adapted(dtype: torch.dtype, alpha: float = 8.0, **section: Any) -> tuple[nn.Module, LoraAdapter]:
    net = network(dtype)
    lora = LoraSection(rank=4, alpha=alpha, targets=TARGETS, **section)
    adapter = LoraAdapter(net, lora, targets=(), base="somebody/model")
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return net, adapter


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def passed(net: nn.Module, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """The output of a network, and the gradients of its input and its adapter."""
    x = x.clone().requires_grad_()
    parameters = [p for p in net.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = net(x)
    output.backward(drawn(*output.shape, seed=9).to(output.dtype))
    return [output.detach(), *(tensor.grad.clone() for tensor in (x, *parameters) if tensor.grad is not None)]


def by_peft(net: nn.Module) -> nn.Module:
    """A copy with the same weights and peft's own forward passes."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, PeftLinear):
            module.__class__ = PeftLinear
    return net


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


# -- exact ------------------------------------------------------------------------------------------------------------

SHAPES = (5, WIDTH), (2, 5, WIDTH), (2, 3, 5, WIDTH)
DTYPES = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)]


@pytest.mark.parametrize("alpha", [4.0, 8.0, 2.0, 7.5], ids=["one", "two", "half", "other"])
@pytest.mark.parametrize(("dtype", "autocast"), DTYPES, ids=["float32", "bfloat16", "autocast", "both"])
def test_exact_has_the_bits_of_peft(dtype: torch.dtype, autocast: bool, alpha: float) -> None:
    net, _ = adapted(dtype, alpha)
    judge = by_peft(net)
    assert type(net[0].q).forward is not PeftLinear.forward  # type: ignore[index]
    assert type(judge[0].q) is PeftLinear  # type: ignore[index]
    for shape in SHAPES:
        x = drawn(*shape).to(dtype)
        ours, theirs = passed(net, x, autocast), passed(judge, x, autocast)
        assert len(ours) == 2 + 2 * 2 * len(TARGETS)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert torch.equal(net(x), judge(x))


def test_exact_has_the_bits_of_peft_with_views_checkpoints_and_the_adapter_off() -> None:
    net, adapter = adapted(torch.float32)
    judge = by_peft(net)
    view = drawn(5, 2, WIDTH).transpose(0, 1)
    assert not view.is_contiguous()
    again = [_Checkpointed(one) for one in (net, judge)]
    for first, second in ((net, judge), again):
        for a, b in zip(passed(first, view), passed(second, view), strict=True):
            assert torch.equal(a, b)
    with adapter.off():
        assert torch.equal(net(view), network(torch.float32)(view))


class _Checkpointed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.net, x, use_reentrant=False)


@pytest.mark.parametrize("layer", ["base_layer", "lora_A.default", "lora_B.default"])
def test_hooks_of_the_layers_inside_are_called(layer: str) -> None:
    net: Any = adapted(torch.float32)[0]
    judge: Any = by_peft(net)
    for one in (net, judge):
        one[0].q.get_submodule(layer).register_forward_hook(lambda layer, given, output: output * 2)
    ours, theirs = (passed(one, drawn(2, 3, WIDTH)) for one in (net, judge))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_exact_takes_fewer_operations() -> None:
    """Of a layer of a batch of sequences: a forward pass without gradient, and one with gradient and its backward."""
    layer: Any = adapted(torch.float32)[0][0].q  # type: ignore[index]
    judge: Any = copy.deepcopy(layer)
    judge.__class__ = PeftLinear
    counts = {}
    for name, one in (("peft", judge), ("ours", layer)):
        x = drawn(2, 3, WIDTH).requires_grad_()
        with torch.no_grad(), Operations() as forward:
            one(x)
        gradient = drawn(2, 3, WIDTH, seed=9)
        with Operations() as both:
            one(x).backward(gradient)
        counts[name] = forward.counts.total(), both.counts.total()
    assert counts == {"peft": (14, 39), "ours": (9, 24)}


# -- fast -------------------------------------------------------------------------------------------------------------


def sped_up(alpha: float = 8.0, **section: Any) -> tuple[nn.Module, LoraAdapter]:
    net, adapter = adapted(torch.bfloat16, alpha, **section)
    adapter.speed_up(torch.bfloat16)
    return net, adapter


def error(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """The relative error of the output, and of the gradients of the adapter together."""

    def relative(some: list[Tensor], judge: list[Tensor]) -> float:
        a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (some, judge))
        return float((a - b).norm() / b.norm())

    return relative(found[:1], exact[:1]), relative(found[2:], exact[2:])


def near(found: Tensor, expected: Tensor, tolerance: float = 0.02) -> bool:
    """Whether a tensor has an error of some roundings to bfloat16, which are of 0.002 each."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("section", [{}, {"alpha": 7.5}, {"rslora": True}], ids=["two", "other", "rslora"])
def test_fast_is_as_near_to_float64_as_autocast(section: dict[str, Any]) -> None:
    """The bound of `precision.adapter: fast`: 1.2 times the error of autocast, over all draws together."""
    net, judge = sped_up(**section)[0], adapted(torch.float32, **section)[0].double()
    today, _ = adapted(torch.bfloat16, **section)
    ours, theirs = torch.zeros(2), torch.zeros(2)
    for seed in range(8):
        x = drawn(2, 5, WIDTH, seed=seed)
        exact = passed(judge, x.double())
        ours += torch.tensor(error(passed(net, x.bfloat16()), exact))
        theirs += torch.tensor(error(passed(today, x.bfloat16(), autocast=True), exact))
    assert (ours < 1.2 * theirs).all(), (ours, theirs)
    assert (ours / 8 > 0.001).all()
    assert (ours / 8 < 0.02).all()


def test_gradients_of_fast_are_float32_and_accumulate_in_it() -> None:
    """A sum of 64 equal gradients is 64 times one, to the precision of float32; bfloat16 would lose eight bits."""
    net, adapter = sped_up()
    x = drawn(2, 5, WIDTH).bfloat16()
    one = passed(net, x)[2:]
    for parameter in adapter.parameters().values():
        parameter.grad = None
    for _ in range(64):
        net(x).backward(drawn(2, 5, WIDTH, seed=9).bfloat16())
    for parameter, gradient in zip(adapter.parameters().values(), one, strict=True):
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, 64 * gradient, rtol=1e-5, atol=0)
        assert not torch.equal(gradient, gradient.bfloat16().float()), "it has more bits than bfloat16"


def test_fast_takes_three_products_and_no_casts() -> None:
    """W x + b and B (A x) of a layer are one product each and A x another; backward, two more each."""
    layer: Any = sped_up()[0][0].q  # type: ignore[index]
    x = drawn(2, 3, WIDTH).bfloat16().requires_grad_()
    with torch.no_grad(), Operations() as forward:
        layer(x)
    kernels = {"addmm": 1, "addmm_": 2}
    views = {"view", "t", "new_empty", "_unsafe_view", "detach"}
    assert {name: n for name, n in forward.counts.items() if name not in views} == kernels


def test_fast_computes_with_the_values_it_was_told_of() -> None:
    net, adapter = sped_up()
    x = drawn(2, 5, WIDTH).bfloat16()
    before = net(x)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.mul_(2)
    assert torch.equal(net(x), before)
    adapter.weights_changed()
    changed = net(x)
    assert not torch.equal(changed, before)
    for layer in adapter.layers.values():
        assert all(torch.equal(copied, master.bfloat16()) for copied, master in copies_of(layer))
    with adapter.off():
        assert torch.equal(net(x), network(torch.bfloat16)(x))
    assert torch.equal(net(x), changed)
    context = adapter.merged()
    assert context is not None
    with context:
        assert near(net(x), changed)


def test_copies_are_no_weights() -> None:
    net, adapter = sped_up()
    same, other = adapted(torch.bfloat16)
    assert net.state_dict().keys() == same.state_dict().keys()
    assert adapter.parameters().keys() == other.parameters().keys()
    assert not {id(p) for p in net.parameters()} & {id(b) for b in net.buffers()}


def test_layers_that_a_model_keeps_in_float32_stay_exact() -> None:
    net: Any = network(torch.bfloat16)
    net[0].q.float()
    adapter = LoraAdapter(net, LoraSection(rank=4, targets=["q"]), targets=(), base="somebody/model")
    adapter.speed_up(torch.bfloat16)
    assert [type(layer).forward is type(net[0].q).forward for layer in adapter.layers.values()] == [True, False]
    assert net[0].q(drawn(2, WIDTH)).dtype == torch.float32
    assert net[1].q(drawn(2, WIDTH).bfloat16()).dtype == torch.bfloat16


class _Halved(nn.Linear):
    """Stands for a quantized layer: its product is not that of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / 2, self.bias)


def test_fast_keeps_the_product_of_other_layers() -> None:
    net: Any = network(torch.bfloat16)
    net[0].q.__class__ = _Halved
    adapter = LoraAdapter(net, LoraSection(rank=4, targets=["q"]), targets=(), base="somebody/model")
    judge: Any = by_peft(net)
    with torch.no_grad():
        for parameters in (net.parameters(), judge.parameters()):
            for i, parameter in enumerate(p for p in parameters if p.requires_grad):
                parameter.copy_(drawn(*parameter.shape, seed=i))
    adapter.speed_up(torch.bfloat16)
    x = drawn(2, 5, WIDTH)
    ours, theirs = passed(net[0].q, x.bfloat16()), passed(judge[0].q.float(), x)
    assert all(near(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not near(ours[0], passed(network(torch.float32)[0].q, x)[0])  # type: ignore[index]


def test_fast_with_checkpoints() -> None:
    net, _ = sped_up()
    x = drawn(2, 5, WIDTH).bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(passed(_Checkpointed(net), x), passed(net, x), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_it_compiles_into_one_graph(fast: bool) -> None:
    net, adapter = sped_up() if fast else adapted(torch.float32)
    dtype = torch.bfloat16 if fast else torch.float32
    x = drawn(2, 5, WIDTH).to(dtype)
    eager = passed(net, x)
    torch.compiler.reset()
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    for a, b in zip(passed(compiled, x), eager, strict=True):
        assert near(a, b)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.mul_(0.5)
    adapter.weights_changed()
    assert near(compiled(x), net(x))

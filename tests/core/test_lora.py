"""A LoRA for a network that knows nothing of it; the judges are its definition in float64 and peft itself."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.errors import UserError
from dgpo_core.lora import LoraAdapter
from dgpo_schemas.sections.backbone import LoraSection

TARGETS = ("attn.q", "attn.out.0", "nowhere")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(6, 6), nn.ModuleList([nn.Linear(6, 6), nn.Dropout(0.5)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out[0](torch.tanh(self.q(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.attn(x))


class Network(nn.Module):
    """Somebody's: two blocks between a convolution and a layer. No `add_adapter`, no `config`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.stack, self.head = nn.Conv1d(4, 6, 1), nn.ModuleList([Block(), Block()]), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.mT).mT
        for block in self.stack:
            x = block(x)
        return self.head(x)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Network().to(dtype).eval().requires_grad_(False)


def adapt(net: nn.Module, targets: list[str] | None = None, rank: int = 3, alpha: float = 7.5) -> LoraAdapter:
    section = LoraSection(rank=rank, alpha=alpha, targets=targets)
    return LoraAdapter(net, section, targets=TARGETS, base="somebody/model")


def randomize(adapter: LoraAdapter) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))


def added(before: Mapping[str, Tensor], parameters: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The base weights in float64, with scale * B A where there are matrices."""
    found = {name: tensor.double() for name, tensor in before.items()}
    for name, down in parameters.items():
        if "lora_A" in name:
            up = parameters[name.replace("lora_A", "lora_B")]
            found[name.replace("lora_A.default.", "")] += scale * up.double() @ down.double()
    return found


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_it_is_the_sum_by_its_definition(x: Tensor) -> None:
    """At the start nothing; then as a network whose weights have alpha / rank * B A added; off, the base."""
    net, reference = network(), network().double()
    base = net(x)
    before = copy.deepcopy(net.state_dict())
    adapter = adapt(net)
    assert torch.equal(net(x), base)
    randomize(adapter)
    reference.load_state_dict(added(before, adapter.parameters(), 7.5 / 3))
    moved = net(x)
    assert_close(moved.double(), reference(x.double()), atol=1e-5, rtol=0)
    assert float((moved - base).abs().max()) > 0.1
    with adapter.off():
        assert torch.equal(net(x), base)
        with adapter.off():
            pass
        assert torch.equal(net(x), base)
    assert torch.equal(net(x), moved)
    kept = copy.deepcopy(net.state_dict())
    context = adapter.merged()
    assert context is not None
    with contextlib.suppress(RuntimeError), context:
        assert_close(net(x), moved, atol=1e-5, rtol=0)
        assert not torch.equal(net.state_dict()["stack.0.attn.q.base_layer.weight"], before["stack.0.attn.q.weight"])
        raise RuntimeError
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(net(x), moved)


def test_it_alone_is_trained_in_float32(x: Tensor) -> None:
    net = network(torch.bfloat16).requires_grad_(True)
    adapter = adapt(net)
    layers = [f"stack.{i}.attn.{name}" for i in range(2) for name in ("q", "out.0")]
    assert list(adapter.layers) == layers
    assert list(adapter.parameters()) == [f"{layer}.lora_{m}.default.weight" for layer in layers for m in "AB"]
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    net(x.bfloat16()).float().square().sum().backward()
    graded = {name for name, p in net.named_parameters() if p.grad is not None}
    assert graded == set(adapter.parameters())


def test_it_starts_the_same_whatever_the_global_state() -> None:
    """A normal with standard deviation 1 / rank, B zero; the generator is left alone."""
    starts = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        starts.append(adapt(network(), ["head", "attn.q", "mlp.0", "mlp.2"], rank=40).parameters())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    downs = torch.cat([p.detach().flatten() for name, p in starts[0].items() if "lora_A" in name])
    assert float(downs.std()) == pytest.approx(1 / 40, rel=0.1)
    assert not any(p.any() for name, p in starts[0].items() if "lora_B" in name)


def test_peft_reads_what_is_written(x: Tensor, tmp_path: Path) -> None:
    """Into a network of its own, without a word of ours; and so does a version that ignores alpha."""
    net = network()
    adapter = adapt(net)
    randomize(adapter)
    assert adapter.formats == ("peft",)
    for _ in range(2):
        adapter.save(tmp_path / "new" / "adapter", "peft")
    loaded: Any = PeftModel.from_pretrained(network(), tmp_path / "new" / "adapter")
    assert_close(loaded(x), net(x), atol=1e-6, rtol=0)
    assert {t.dtype for t in load_file(tmp_path / "new/adapter/adapter_model.safetensors").values()} == {torch.float32}
    with pytest.raises(ValueError, match="kohya: the formats are peft"):
        adapter.save(tmp_path, "kohya")


def refusal(net: nn.Module, targets: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        adapt(net, targets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("attn.k", "matches no module of the network"),
        ("ttn.q", "matches no module of the network"),
        ("attn", "matches stack.0.attn, which is not a linear layer of the network"),
        ("conv", "matches conv, which is not a linear layer of the network"),
        ("stack.1", "matches stack.1, which is not a linear layer of the network"),
        ("", "matches no module of the network"),
    ],
)
def test_targets_that_cannot_be_bound(target: str, problem: str) -> None:
    """The nearest endings have no block's number, and each of them would do."""
    text = refusal(network(), ["attn.q", target])
    start, _, offered = text.partition("; nearest suffixes of linear layers: ")
    assert start == f"backbone.lora.targets: {target!r} {problem}"
    assert 0 < len(offered.split(", ")) <= 5
    assert "stack" not in offered
    assert adapt(network(), offered.split(", ")).layers
    assert not any("lora" in name for name, _ in network().named_parameters()), "nothing was bound before"


def test_endings_are_those_of_the_network() -> None:
    text = refusal(network(), ["attn.qq"])
    assert text.endswith(": attn.q, attn.out.0, out.0, q, head")


def test_defaults_that_match_nothing() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert refusal(net) == (
        "backbone.lora.targets: none of the default attn.q, attn.out.0, nowhere matches a linear layer; nearest "
        "suffixes of linear layers: 0"
    )
    assert refusal(nn.Sequential(nn.Tanh())).endswith("nearest suffixes of linear layers: none")


def test_a_target_named_twice_is_one() -> None:
    twice, once = adapt(network(), ["q", "q", "attn.q"]), adapt(network(), ["q"])
    assert twice.layers.keys() == once.layers.keys()


def test_layers_that_are_not_called() -> None:
    """torch takes their weights: an adapter would be trained by nobody and change nothing."""
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, batch_first=True), nn.Linear(8, 8))
    text = refusal(net, ["linear1"])
    assert "matches 0.linear1, whose weight TransformerEncoderLayer reads without calling it" in text
    assert text.endswith(": 1")
    assert "whose weight MultiheadAttention reads" in refusal(nn.Sequential(nn.MultiheadAttention(8, 2)), ["out_proj"])


def test_a_layer_in_two_places(x: Tensor) -> None:
    net: Any = network()
    net.tail = net.head
    assert "'tail' matches tail, which is the same module as head" in refusal(net, ["tail"])


def test_a_weight_of_two_layers_is_not_merged(x: Tensor) -> None:
    """The other one would have the adapter too."""
    net: Any = network()
    net.stack[0].attn.q.weight = net.stack[1].attn.out[0].weight
    assert adapt(net).merged() is None
    assert adapt(network(), ["head"]).merged() is not None


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "lora requires peft: pip install 'dgpo[lora]'" in refusal(network())

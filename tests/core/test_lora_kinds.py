"""Rank-stabilized LoRA and DoRA; the judges are peft's own models, and their definitions in float64."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
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
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_schemas.run import RunConfig
from tests.core.test_lora import network
from tests.core.test_lora_start import start, theirs, x
from tests.core.test_lora_start_runs import SAME, backbone, known, make_config, velocity

__all__ = ["known", "make_config", "x"]
KINDS: list[dict[str, Any]] = [{"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["rslora", "dora", "both"])


def moved(**section: Any) -> tuple[nn.Module, LoraAdapter]:
    net, adapter = start(None, **section)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(adapter.parameters().items()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.copy_(parameter * (1 + 0.3 * noise.clamp(-2, 2)) if "magnitude" in name else 0.3 * noise)
    return net, adapter


def defined(adapter: LoraAdapter, kind: dict[str, Any], rank: int = 3, alpha: float = 7.5) -> dict[str, Tensor]:
    """The adapted weights in float64."""
    scale = alpha / (rank**0.5 if kind.get("rslora") else rank)
    values = {name: p.detach().double() for name, p in adapter.parameters().items()}
    found = {name: tensor.double() for name, tensor in network().state_dict().items()}
    for layer in adapter.layers:
        down, up = (values[f"{layer}.lora_{m}.default.weight"] for m in "AB")
        weight = found[f"{layer}.weight"] + scale * up @ down
        if kind.get("dora"):
            norms = weight.square().sum(1, keepdim=True).sqrt()
            weight = values[f"{layer}.lora_magnitude_vector.default.weight"][:, None] * weight / norms
        found[f"{layer}.weight"] = weight
    return found


@kinds
@torch.no_grad()
def test_it_is_its_definition(kind: dict[str, Any], x: Tensor) -> None:
    net, adapter = start(None, **kind)
    assert torch.equal(net(x), network()(x))
    assert all(p.dtype == torch.float32 for p in adapter.parameters().values())
    net, adapter = moved(**kind)
    judge = network().double()
    judge.load_state_dict(defined(adapter, kind))
    assert_close(net(x).double(), judge(x.double()), atol=2e-6, rtol=0)
    with adapter.off():
        assert torch.equal(net(x), network()(x))
    before, now = net(x), copy.deepcopy(net.state_dict())
    merged = adapter.merged()
    assert merged is not None
    with merged:
        assert_close(net(x), before, atol=2e-6, rtol=0)
    with contextlib.suppress(KeyError), adapter.merged() or contextlib.nullcontext():
        raise KeyError
    assert all(torch.equal(tensor, now[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net(x), before)


@torch.no_grad()
def test_dora_over_bfloat16(x: Tensor) -> None:
    """Norms are those of float32: at the start it adds nothing."""
    net, adapter = start(None, network(torch.bfloat16), dora=True)
    x = x.bfloat16()
    assert torch.equal(net(x), network(torch.bfloat16)(x))
    for layer in adapter.layers:
        weight = net.get_submodule(layer).get_base_layer().weight.double()  # type: ignore[operator]
        assert_close(adapter.magnitudes()[layer].double(), weight.norm(dim=1), atol=1e-6, rtol=0)


@kinds
@torch.no_grad()
def test_peft_reads_it(kind: dict[str, Any], x: Tensor, tmp_path: Path) -> None:
    net, adapter = moved(**kind)
    adapter.save(tmp_path, "peft")
    judge: Any = PeftModel.from_pretrained(network(), tmp_path)
    assert_close(judge(x), net(x), atol=2e-6, rtol=0)
    assert any("magnitude" in name for name in load_file(tmp_path / "adapter_model.safetensors")) is ("dora" in kind)
    again, _ = start(tmp_path, rank=5, alpha=2.0, **kind)
    assert_close(again(x), net(x), atol=2e-6, rtol=0)


@torch.no_grad()
def test_a_file_of_peft_with_dora(x: Tensor, tmp_path: Path) -> None:
    judge = theirs(tmp_path, use_dora=True)
    net, _ = start(tmp_path, rank=4, dora=True)
    assert_close(net(x), judge(x), atol=2e-6, rtol=0)
    with pytest.raises(
        UserError, match=r"has magnitudes of shape \[6\] \(DoRA\); allowed with them is backbone.lora.d"
    ):
        start(tmp_path, rank=4)


@torch.no_grad()
def test_dora_from_a_file_without_magnitudes(x: Tensor, tmp_path: Path) -> None:
    judge = theirs(tmp_path)
    net, _ = start(tmp_path, rank=4, dora=True)
    assert_close(net(x), judge(x), atol=2e-6, rtol=0)


def test_a_row_without_a_direction() -> None:
    net = network()
    with torch.no_grad():
        net.stack[1].attn.q.weight[2] = 0  # type: ignore[index, union-attr]
    with pytest.raises(
        UserError, match=r"^backbone\.lora\.dora: layer stack\.1\.attn\.q has a row of zeros, which has"
    ):
        start(None, net, dora=True)


@kinds
def test_a_resumed_run_is_the_run_that_was_not_killed(
    make_config: Callable[..., RunConfig], known: Registry, kind: dict[str, Any]
) -> None:
    straight, killed = (make_config(backbone=backbone(**kind), run={"name": name}) for name in ("a", "b"))
    trainer = Trainer(straight, known)
    base = velocity(trainer.build())
    trainer.train()
    Trainer(killed, known).train(max_iterations=2)
    assert Trainer(killed, known).train(resume=True) == "finished"
    one, two = (run_path(config) for config in (straight, killed))
    for file in SAME:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    run = trainer.build()
    now = velocity(run)
    assert not torch.equal(now, base)
    with run.policy.activate("base"):
        assert torch.equal(velocity(run), base)
    with run.policy.activate("policy", merged=True):
        assert_close(velocity(run), now, atol=1e-5, rtol=0)
    names = {name.rpartition(".lora_")[2] for name in run.policy.parameters}
    assert ("magnitude_vector.default.weight" in names) is ("dora" in kind)

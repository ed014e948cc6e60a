"""An adapter that starts from a file; the judges are peft, which reads the same file, and closed forms in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.errors import UserError
from dgpo_core.lora import LoraAdapter
from dgpo_schemas.sections.backbone import LoraSection
from tests.core.test_lora import TARGETS, network


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))


def theirs(directory: Path, **config: Any) -> Any:
    """A random adapter of peft, saved by peft."""
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": ["attn.q", "attn.out.0"]}
    model: Any = get_peft_model(network(), LoraConfig(**settings | config))  # type: ignore[arg-type]
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
                parameter.copy_(0.3 * noise if "magnitude" not in name else parameter * (1 + 0.2 * noise))
    model.save_pretrained(directory)
    return model.eval()


def start(init: Path | None, net: nn.Module | None = None, **section: Any) -> tuple[nn.Module, LoraAdapter]:
    net = network() if net is None else net
    settings = {"rank": 3, "alpha": 7.5} | section
    made = LoraAdapter(
        net, LoraSection(init=None if init is None else str(init), **settings), targets=TARGETS, base="x"
    )
    return net, made


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "alphas": {"alpha_pattern": {"stack.0.attn.q": 11, "out.0": 2}},
    "ranks": {"rank_pattern": {"attn.q": 1}},
}


@torch.no_grad()
@pytest.mark.parametrize("section", [{}, {"rank": 7, "alpha": 2.0}], ids=["same rank", "larger rank"])
@pytest.mark.parametrize("config", CONFIGS)
def test_it_computes_what_pefts_adapter_does(config: str, section: dict[str, Any], x: Tensor, tmp_path: Path) -> None:
    judge = theirs(tmp_path, **CONFIGS[config])
    net, adapter = start(tmp_path, **section)
    assert_close(net(x), judge(x), atol=2e-6, rtol=0)
    assert float((net(x) - network()(x)).abs().max()) > 0.05
    with adapter.off():
        assert torch.equal(net(x), network()(x))
    assert (adapter.notes, adapter.source) == ([], tmp_path / "adapter_model.safetensors")
    adapter.save(tmp_path / "again", "peft")
    again: Any = PeftModel.from_pretrained(network(), tmp_path / "again")
    assert_close(again(x), judge(x), atol=2e-6, rtol=0)


def test_a_larger_rank_trains(tmp_path: Path, x: Tensor) -> None:
    """B is zero beyond the file's rank, A as a new adapter's: B has a gradient there."""
    theirs(tmp_path)
    net, adapter = start(tmp_path, rank=5)
    _, new = start(None, rank=5)
    net(x).square().sum().backward()
    fresh = new.parameters()
    for name, parameter in adapter.parameters().items():
        assert parameter.grad is not None
        if "lora_A" in name:
            assert torch.equal(parameter[3:], fresh[name][3:])
            assert float(parameter.detach()[3:].abs().min()) > 0
        else:
            assert not bool(parameter[:, 3:].any())
            assert bool((parameter.grad[:, 3:] != 0).all())


def test_the_same_scale_keeps_the_bits(tmp_path: Path) -> None:
    theirs(tmp_path)
    _, adapter = start(tmp_path, alpha=5)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 8
    for name, tensor in saved.items():
        mine = adapter.parameters()[name.removeprefix("base_model.model.").replace(".weight", ".default.weight")]
        assert torch.equal(mine, tensor)


@torch.no_grad()
def test_half_precision_and_any_name(tmp_path: Path) -> None:
    theirs(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file({name: tensor.bfloat16() for name, tensor in saved.items()}, tmp_path / "mine.safetensors")
    _, adapter = start(tmp_path / "mine.safetensors", alpha=5)
    assert all(p.dtype == torch.float32 for p in adapter.parameters().values())
    q = adapter.folded()["stack.0.attn.q"]
    down, up = (saved[f"base_model.model.stack.0.attn.q.lora_{m}.weight"].bfloat16().double() for m in "AB")
    assert_close((q[1] @ q[0]).double(), 5 / 3 * up @ down, atol=1e-6, rtol=0)


def test_layers_that_are_absent_start_at_zero_and_are_told(tmp_path: Path) -> None:
    theirs(tmp_path, target_modules=["stack.1.attn.q"])
    _, adapter = start(tmp_path)
    assert adapter.notes == [
        f"backbone.lora.init: 3 of 4 adapted layers are not in {tmp_path}/adapter_model.safetensors, the first is "
        "stack.0.attn.q; they start at zero"
    ]
    assert not bool(adapter.folded()["stack.0.attn.q"][1].any())
    assert bool(adapter.folded()["stack.1.attn.q"][1].any())


def test_a_model_without_weights_does_not_read_it() -> None:
    start(Path("nowhere"), network().to("meta"))


def _config(**change: Any) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


def _tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors")

    return write


def _also(name: str, tensor: Tensor) -> Callable[[Path], None]:
    return _tensors(lambda tensors: tensors.update({f"base_model.model.{name}": tensor}))


def _nan(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = math.nan


FILE = "adapter_model.safetensors"
A, B = "lora_A.weight", "lora_B.weight"
Q = "base_model.model.stack.0.attn.q"
BAD: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "rank": ({"r": 9}, None, "layer stack.0.attn.out.0 has rank 9 (matrices of shapes [9, 6] and [6, 9]); allowed is "
             "at most backbone.lora.rank, 3"),
    "unbound": ({"target_modules": ["attn.q", "mlp.0"]}, None, "layer stack.0.mlp.0 (an update of shape [9, 6], this "
                "model's of shape [9, 6]) is not among the layers that backbone.lora.targets bind; name it there"),
    "another model's layer": (
        {}, _tensors(lambda t: t.update({f"base_model.model.stack.7.attn.q.{m}": t[f"{Q}.{m}"] + 1 for m in (A, B)})),
        "layer stack.7.attn.q (an update of shape [6, 6]) is not in this model; did you mean stack.1.attn.q?; allowed",
    ),
    "another model's shape": (
        {}, lambda d: _also(f"stack.0.attn.q.{B}", torch.ones(8, 3))(d),
        "layer stack.0.attn.q has an update of shape [8, 6], but this model's layer the shape [6, 6]; allowed is",
    ),
    "no config": ({}, lambda d: (d / "adapter_config.json").unlink(), "is in peft's format, which has its scale in "
                  "adapter_config.json; put it beside it"),
    "kind": ({}, _config(peft_type="LOHA"), "is an adapter of type LOHA; allowed is LORA"),
    "alpha": ({}, _config(lora_alpha="much"), "the adapter's configuration has no valid alpha: "),
    "alpha that is not finite": ({}, _config(lora_alpha=math.inf), "the scale of layer stack.0.attn.q, inf, makes an "
                                 "update that is not finite"),
    "alpha of 400 digits": ({}, _config(lora_alpha=10**400), "the adapter's configuration has no valid alpha: int"),
    "alphas that are a list": ({}, _config(alpha_pattern=[3]), "the adapter's configuration has no valid alpha: "),
    "two alphas": ({}, _also("stack.0.attn.q.alpha", torch.ones(2)), "has stack.0.attn.q.alpha, of shape [2]; allowed "
                   "is one number"),
    "no rank": ({}, _tensors(lambda t: t.update({f"{Q}.{A}": torch.ones(0, 6), f"{Q}.{B}": torch.ones(6, 0)})),
                "matrices of shapes [0, 6] and [6, 0]; allowed are [rank, inputs] and [outputs, rank], of rank 1"),
    "twice": ({}, _tensors(lambda t: t.update({f"{Q}.lora_A.default.weight": t[f"{Q}.{A}"] + 1})), "a layer that it "
              "has by another name too; allowed is one adapter per file"),
    "a changed base": ({}, _config(init_lora_weights="pissa_niter_4"), "was initialized with pissa_niter_4, which also "
                       "changes the base weights; convert it to a LoRA"),
    "no magnitudes": ({}, _config(use_dora=True), "without the magnitudes that its configuration has"),
    "not true or false": ({}, _config(use_rslora="no"), "use_rslora of its configuration is not true or false"),
    "half": ({}, _tensors(lambda t: t.pop(f"base_model.model.stack.0.attn.q.{B}")), "has stack.0.attn.q.lora_A.weight, "
             "but not both low-rank matrices of this layer"),
    "bias": ({}, _also("stack.0.attn.q.lora_B.bias", torch.ones(6)), "has stack.0.attn.q.lora_B.bias, which is not"),
    "convolution": ({}, _also(f"stack.0.attn.q.{A}", torch.ones(3, 6, 1, 1)), "matrices of shapes [3, 6, 1, 1] and"),
    "not finite": ({}, _tensors(_nan), "whose values are not all finite"),
    "integers": ({}, _also(f"stack.0.attn.q.{A}", torch.ones(3, 6).to(torch.int8)), "int8; quantized adapters are not"),
    "truncated": ({}, lambda d: (d / FILE).write_bytes((d / FILE).read_bytes()[:-9]) and None, "allowed is a complete "
                  "safetensors file"),
    "pickle": ({}, lambda d: (d / FILE).rename(d / "adapter_model.bin") and None, "contains README.md, "
               "adapter_config.json, adapter_model.bin; allowed is a directory with one adapter"),
    "names": ({}, _tensors(lambda t: (t.clear(), t.update({"q.lora_A.weight": torch.ones(3, 6)}))), "has "
              "q.lora_A.weight, which is no tensor name of peft"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_told(case: str, tmp_path: Path) -> None:
    config, change, message = BAD[case]
    theirs(tmp_path, **config)
    if change is not None:
        change(tmp_path)
    with pytest.raises(UserError) as caught:
        start(tmp_path)
    text = str(caught.value)
    assert text.startswith("backbone.lora.init: ")
    assert message in text
    assert str(tmp_path) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist; allowed is an adapter's file that ends in .safetensors, or a directory"),
        ("pickle.pt", "pickle.pt is not a safetensors file; allowed is an adapter's file"),
        ("run", "run is the directory of a run, not an adapter; start from its weights with run.init_from"),
        ("empty", "empty contains nothing; allowed is a directory with one adapter"),
    ],
)
def test_no_adapter_is_there(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pickle.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    for file in ("config.yaml", "run.json"):
        (tmp_path / "run" / file).touch()
    with pytest.raises(UserError, match=r"^backbone\.lora\.init: ") as caught:
        start(tmp_path / name)
    assert message in str(caught.value)

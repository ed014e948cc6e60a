"""Runs that start from an adapter or from another run: killed, resumed, evaluated, and what their reference is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgpo_core.api.target import open_target
from dgpo_core.contracts import Adapter, Backbone
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.lora import LoraAdapter
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.starting import _check_same_adapter, check_start
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import ToyOptions, run_data
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig
from tests.core.test_lora_runs import Plain, velocity

Make = Callable[..., RunConfig]
SAME = ("metrics.jsonl", "checkpoints/000004/weights.safetensors", "checkpoints/000004/optimizer.safetensors")

OBJECTIVE = {"kl": 0.5, "ema": {"every": 2}}


class Starting(Plain):
    uses = Backbone.uses


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [Component("plain", "Somebody's", f"{__name__}:Starting", ToyOptions)]


@pytest.fixture
def known(registry: Registry) -> Registry:
    registry.register(_Plugin(), distribution="theirs", version="1.0")
    return registry


@pytest.fixture
def make_config(tmp_path: Path) -> Make:
    def make(**sections: Any) -> RunConfig:
        run = {"name": "toy", "output": str(tmp_path), "iterations": 4, "seed": 3, "device": "cpu", "threads": 1}
        data = run_data(tmp_path, **sections) | {"run": run | sections.get("run", {})}
        return RunConfig.model_validate(data | {"backbone": sections.get("backbone", data["backbone"])})

    return make


def backbone(train: str = "lora", **lora: Any) -> dict[str, Any]:
    block = {"use": "plain", "checkpoint": "theirs", "train": train}
    return block if train == "full" else block | {"lora": {"rank": 2, "alpha": 3} | lora}


@pytest.fixture
def first(make_config: Make, known: Registry) -> Callable[[str], Path]:
    """A finished run, whose averages have moved."""

    def make(train: str) -> Path:
        config = make_config(backbone=backbone(train), run={"name": f"first-{train}"}, objective={"ema": {"every": 2}})
        Trainer(config, known).train()
        return run_path(config)

    return make


def weights(run: Path, model: str, checkpoint: str = "000004") -> dict[str, torch.Tensor]:
    found = load_file(run / "checkpoints" / checkpoint / "weights.safetensors")
    return {n.removeprefix(f"{model}/"): t for n, t in found.items() if n.startswith(f"{model}/")}


def exported(run: Path, directory: Path, known: Registry) -> Path:
    target = open_target(run, on_message=print)
    with target.engine.policy.activate("ema"):
        assert target.engine.backbone.adapter is not None
        target.engine.backbone.adapter.save(directory, "peft")
    target.engine.close()
    return directory


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(
    ("suffix", "model", "checkpoint"),
    [("", "ema", "000004"), (":policy", "policy", "000004"), ("@3:ema_fast", "ema_fast", "000003"),
     ("@newest", "ema", "000004")],
)  # fmt: skip
def test_the_weights_are_those_of_the_other_run(
    make_config: Make, known: Registry, first: Callable[[str], Path], train: str, suffix: str, model: str,
    checkpoint: str,
) -> None:  # fmt: skip
    other = first(train)
    config = make_config(backbone=backbone(train), run={"name": "second", "init_from": f"{other}{suffix}"})
    trainer = Trainer(config, known)
    run = trainer.build()
    wanted = weights(other, model, checkpoint)
    assert wanted.keys() == dict(run.policy.parameters).keys()
    for name, tensor in run.policy.state().items():
        assert torch.equal(tensor, wanted[name.partition("/")[2]]), name
    assert (run.optimizer.updates, run.policy.change_norm()) == (0, 0.0)
    base = Trainer(make_config(backbone=backbone(train), run={"name": "base"}), known).build()
    with run.policy.activate("base"):
        assert torch.equal(velocity(run), velocity(base))
    with run.policy.activate("start"):
        assert not torch.equal(velocity(run), velocity(base))
    trainer.close()


@pytest.mark.parametrize("reference", ["frozen", "start", "ema_fast"])
@pytest.mark.parametrize("how", ["lora.init", "init_from", "full"])
def test_a_resumed_run_is_the_run_that_was_not_killed(
    make_config: Make, known: Registry, first: Callable[[str], Path], tmp_path: Path, how: str, reference: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It reads neither the adapter nor the other run again, which are gone."""
    monkeypatch.setattr("dgpo_core.plugins.registry._registry", known, raising=False)
    monkeypatch.setattr("dgpo_core.plugins.registry.get_registry", lambda: known)
    train = "full" if how == "full" else "lora"
    other = first(train)
    start = exported(other, tmp_path / "adapter", known) if how == "lora.init" else other
    block = backbone(train, init=str(start)) if how == "lora.init" else backbone(train)
    more = {} if how == "lora.init" else {"init_from": str(start)}
    straight, killed = (
        make_config(backbone=block, run={"name": name, **more}, objective=OBJECTIVE | {"reference": reference})
        for name in ("a", "b")
    )
    Trainer(straight, known).train()
    Trainer(killed, known).train(max_iterations=2)
    shutil.rmtree(start)
    assert Trainer(killed, known).train(resume=True) == "finished"
    one, two = (run_path(config) for config in (straight, killed))
    for file in SAME:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    found = [json.loads((run / "run.json").read_text())["start"] for run in (one, two)]
    assert found[0] == found[1]
    target = open_target(two, on_message=print)
    wanted = weights(two, "ema")
    with target.engine.policy.activate("ema"):
        assert target.engine.policy.available("ema") == "ema"
        assert all(torch.equal(p, wanted[name]) for name, p in target.engine.policy.parameters.items())
    target.engine.close()


def test_the_start_is_recorded(
    make_config: Make, known: Registry, first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo_core.plugins.registry.get_registry", lambda: known)
    other = first("lora")
    file = exported(other, tmp_path / "adapter", known) / "adapter_model.safetensors"
    config = make_config(backbone=backbone(init=str(tmp_path / "adapter")), run={"name": "a", "iterations": 1})
    Trainer(config, known).train()
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert json.loads((run_path(config) / "run.json").read_text())["start"] == {
        "adapter": str(file), "file": {"bytes": file.stat().st_size, "digest": digest},
    }  # fmt: skip
    config = make_config(backbone=backbone(), run={"name": "b", "iterations": 1, "init_from": f"{other}@3"})
    Trainer(config, known).train()
    manifest = json.loads((other / "checkpoints/000003/manifest.json").read_text())
    assert json.loads((run_path(config) / "run.json").read_text())["start"] == {
        "run": str(other.absolute()), "iteration": 3, "model": "ema",
        "weights": manifest["files"]["weights.safetensors"],
    }  # fmt: skip
    config = make_config(backbone=backbone(), run={"name": "c", "iterations": 1})
    Trainer(config, known).train()
    assert "start" not in json.loads((run_path(config) / "run.json").read_text())


@pytest.mark.parametrize("reference", ["frozen", "start"])
def test_the_reference(make_config: Make, known: Registry, first: Callable[[str], Path], reference: str) -> None:
    """The first update's KL term is zero exactly if the reference is what the run starts from."""
    config = make_config(
        backbone=backbone(), run={"name": "b", "iterations": 1, "init_from": str(first("lora"))},
        optimizer={"updates": 1}, objective={"reference": reference, "kl": 0.5},
    )  # fmt: skip
    Trainer(config, known).train()
    (line,) = (run_path(config) / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(line)["kl"] == 0) is (reference == "start")


def test_an_average_that_has_not_moved_is_not_taken(make_config: Make, known: Registry) -> None:
    config = make_config(backbone=backbone(), run={"name": "first"}, objective={"ema": {"every": 1000}})
    Trainer(config, known).train()
    other = run_path(config)
    run = Trainer(make_config(backbone=backbone(), run={"name": "b", "init_from": str(other)}), known).build()
    wanted = weights(other, "policy")
    assert all(torch.equal(p, wanted[name]) for name, p in run.policy.parameters.items())


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "alpha": ("", backbone(alpha=4.0), "was trained with backbone.lora.alpha: 3.0, but this run has 4.0"),
    "rank": ("", backbone(rank=3), "was trained with backbone.lora.rank: 2, but this run has 3"),
    "dora": ("", backbone(dora=True), "was trained with backbone.lora.dora: false, but this run has true"),
    "train": ("", backbone("full"), "was trained with backbone.train: lora, but this run has full"),
    "backbone": ("", {"use": "toy", "checkpoint": "toy", "lora": {"rank": 2, "alpha": 3}},
                "was trained with backbone.use: plain, but this run has toy"),
    "targets": ("", backbone(targets=["0"]), "000004: made by another model or adapter: 2 weights differ, the first is "
                "2.lora_A.default.weight (this run has none, the other (2, 24))"),
    "model": (":emma", backbone(), "'emma' is not a model of a run; choose one of policy, ema_fast, ema; did you mean"),
    "base": (":base", backbone(), "'base' is not a model of a run; choose one of policy, ema_fast, ema"),
    "checkpoint": ("@2", backbone(), "checkpoints: no checkpoint '2'; there are newest, best and iterations 3, 4"),
    "no checkpoint": ("@newst", backbone(), "'newst' is not a checkpoint of a run; choose newest, best"),
    "run": ("-nowhere", backbone(), "first-lora-nowhere: no such run directory; allowed is RUN, RUN@CHECKPOINT or"),
    "no run": ("/checkpoints", backbone(), "checkpoints: not a run directory (it has no config.yaml)"),
}  # fmt: skip


WITH_A_MODEL = ("targets", "checkpoint")
"""Cases that are seen only once the model is there, or the checkpoint is read."""


@pytest.mark.parametrize("case", BAD)
def test_another_run_that_does_not_fit(
    make_config: Make, known: Registry, first: Callable[[str], Path], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, block, message = BAD[case]
    config = make_config(backbone=block, run={"name": "b", "init_from": f"{first('lora')}{suffix}"})
    if case not in WITH_A_MODEL:
        monkeypatch.setattr("dgpo_core.training.run.build_engine", lambda *_, **__: pytest.fail("a model was built"))
    if case in (*WITH_A_MODEL, "run"):
        check_start(config, here=False)
    else:
        with pytest.raises(UserError) as early:
            check_start(config, here=False)
        assert message in str(early.value)
    with pytest.raises(UserError) as caught:
        Trainer(config, known).train()
    assert message in str(caught.value)
    assert str(caught.value).startswith("run.init_from: ")
    assert "\n" not in str(caught.value)
    assert not run_path(config).exists()


def test_what_has_no_effect(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match="the weights that the run starts from are the base model's"):
        make_config(objective={"reference": "start"})
    with pytest.raises((ConfigError, ValueError), match=r"has no effect because run.init_from is set"):
        make_config(backbone=backbone(init="a"), run={"init_from": "b"})


def test_an_adapter_of_its_own_kind_is_refused(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(LoraAdapter, "supports", Adapter.supports)
    monkeypatch.setattr(LoraAdapter, "_start_from", lambda *_: None)
    for module in ("dgpo_core.lora.adapter", "dgpo_core.training.starting"):
        monkeypatch.setattr(f"{module}.open_adapter", lambda *_: None)
    config = make_config(backbone=backbone(init=str(tmp_path)))
    with pytest.raises(UserError, match=r"backbone\.lora\.init: the adapter of the backbone plain does not support it"):
        Trainer(config, known).build()


def test_options_that_select_what_is_trained(make_config: Make) -> None:
    """Such as one of two experts: their weights have the same names and shapes."""
    here, there = (make_config(backbone=backbone() | {"options": {"expert": expert}}) for expert in ("high", "low"))
    _check_same_adapter(Path("other"), there, here, ())
    with pytest.raises(UserError, match=r"backbone\.options\.expert: low, but this run has high; allowed is a run"):
        _check_same_adapter(Path("other"), there, here, {"expert"})


def test_an_adapter_is_read_before_a_model_is_built(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dgpo_core.training.run.build_engine", lambda *_, **__: pytest.fail("a model was built"))
    config = make_config(backbone=backbone(init=str(tmp_path / "adapter.safetensors")))
    check_start(config, here=False)
    with pytest.raises(UserError, match=r"^backbone\.lora\.init: .* does not exist; allowed is an adapter's file"):
        Trainer(config, known).build()
    (tmp_path / "adapter.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"^backbone\.lora\.init: .* cannot be read"):
        check_start(config, here=False)

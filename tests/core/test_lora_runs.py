"""A third party's model with an adapter in one line: runs of it, killed, resumed and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dgpo_core.contracts import Adapter
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.lora import LoraAdapter
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Conditioning
from dgpo_kit.contracts import check_backbone
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection

Make = Callable[..., RunConfig]
PLAIN = {"use": "plain", "checkpoint": "theirs", "lora": {"rank": 2, "alpha": 3}}
SIZE = SHAPE[0] * SHAPE[1] * SHAPE[2]


class Plain(ToyBackbone):
    """The toy's prompts and images, a network of its own that knows nothing of adapters."""

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super(ToyBackbone, self).__init__(section, options, device=device)
        self.dtype = torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self._network = nn.Sequential(nn.Linear(SIZE + 5, 24), nn.Tanh(), nn.Linear(24, SIZE))
        if section.train == "lora":
            self.adapter = LoraAdapter(self._network, section.lora, targets=("0", "2"), base=section.checkpoint)


class NoAdapter(Plain):
    """Trains every weight, whatever its section says."""

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super().__init__(section.model_copy(update={"train": "full"}), options, device=device)
        self.section = section


class Always(Plain):
    """Has an adapter, whatever its section says."""

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super().__init__(section.model_copy(update={"train": "lora"}), options, device=device)
        self.section = section


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        made = {"plain": "Plain", "no-adapter": "NoAdapter", "always": "Always"}
        return [Component(name, "Somebody's", f"{__name__}:{kind}", ToyOptions) for name, kind in made.items()]


@pytest.fixture
def known(registry: Registry) -> Registry:
    registry.register(_Plugin(), distribution="theirs", version="1.0")
    return registry


def run_of(directory: Path, use: str, train: str) -> RunConfig:
    block = {"use": use, "checkpoint": "theirs", "train": train}
    return RunConfig.model_validate(run_data(directory) | {"backbone": block})


def velocity(engine: Engine) -> Tensor:
    x, rows = torch.ones(2, *SHAPE), Conditioning({"c": torch.ones(2, 4)})
    with torch.no_grad():
        return engine.policy.velocity(x, torch.tensor([0.9, 0.2]), rows)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_it_keeps_the_contract(train: str) -> None:
    section = BackboneSection.model_validate({"use": "plain", "checkpoint": "theirs", "train": train})
    check_backbone(lambda: Plain(section, ToyOptions(), device=torch.device("cpu")), (8, 8), impossible=(8, 12))


@pytest.mark.parametrize("merge", [False, True])
def test_a_resumed_run_is_the_run_that_was_not_killed(make_config: Make, known: Registry, merge: bool) -> None:
    straight, killed = (
        make_config(backbone=PLAIN, rollout={"merge_adapter": merge}, run={"name": name}) for name in ("a", "b")
    )
    Trainer(straight, known).train()
    Trainer(killed, known).train(max_iterations=2)
    assert Trainer(killed, known).train(resume=True) == "finished"
    first, second = (run_path(config) for config in (straight, killed))
    for file in ("metrics.jsonl", "checkpoints/000004/weights.safetensors", "checkpoints/000004/optimizer.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_every_model_of_it(make_config: Make, known: Registry) -> None:
    """Off it is the untouched network, bit for bit, and the run trains nothing else."""
    trainer = Trainer(make_config(backbone=PLAIN), known)
    base = {name: p.clone() for name, p in trainer.build().backbone.module.named_parameters() if "lora" not in name}
    start = velocity(trainer.build())
    trainer.train()
    moved = velocity(trainer.build())
    assert not torch.equal(moved, start)
    with trainer.build().policy.activate("base"):
        assert torch.equal(velocity(trainer.build()), start)
    with trainer.build().policy.activate("policy", merged=True):
        torch.testing.assert_close(velocity(trainer.build()), moved, atol=1e-6, rtol=0)
    after = dict(trainer.build().backbone.module.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in base.items())


def test_every_weight_of_it(known: Registry, tmp_path: Path) -> None:
    """There is no adapter; the weights are written by their names, and their base is the engine's copy."""
    trainer = Trainer(run_of(tmp_path, "plain", "full"), known)
    start = velocity(trainer.build())
    trainer.train()
    backbone = trainer.build().backbone
    assert backbone.adapter is None
    for _ in range(2):
        backbone.save_weights(tmp_path / "new" / "weights")
    written = load_file(tmp_path / "new/weights/weights.safetensors")
    trained = dict(backbone.module.named_parameters())
    assert list(backbone.trainable()) == list(trained)
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[name], p) for name, p in trained.items())
    with trainer.build().policy.activate("base"):
        assert torch.equal(velocity(trainer.build()), start)


@pytest.mark.parametrize(
    ("use", "train", "problem"),
    [
        ("no-adapter", "lora", "has no adapter; set `train: full`"),
        ("always", "full", "always has an adapter; set `train: lora`"),
    ],
)
def test_a_model_that_trains_something_else(
    use: str, train: str, problem: str, known: Registry, tmp_path: Path
) -> None:
    config = run_of(tmp_path, use, train)
    with pytest.raises(UserError, match=rf"^backbone\.train: {train}: the backbone {use} {problem}"):
        Trainer(config, known).train()
    assert not (run_path(config) / "checkpoints").exists()


def test_an_adapter_that_cannot_merge(make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraAdapter, "merged", Adapter.merged)
    with pytest.raises(UserError, match=r"rollout\.merge_adapter: backbone: plain cannot merge its adapter"):
        build_engine(make_config(backbone=PLAIN, rollout={"merge_adapter": True}), known).rollout_sampler()

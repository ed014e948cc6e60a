"""Weights that are no numbers to go on with are not saved, and not taken from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dgpo_core.errors import RunStopped, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import Checkpoints
from dgpo_core.system.files import file_entry
from dgpo_core.training.accumulation import Accumulated
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import LARGEST, STORED, Policy
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import ToyBackbone, ToyOptions
from dgpo_schemas.manifest import sealed_json
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_schemas.sections.training import ObjectiveSection

Make = Callable[..., RunConfig]
OFTEN: dict[str, Any] = {"evaluation": {"every": 0}, "checkpoints": {"every": 1}}


def spoil(path: Path, value: float = float("nan"), name: str = "weights") -> None:
    """Make a checkpoint one that an older version would have saved: one number is `value`, all digests are right."""
    file = path / f"{name}.safetensors"
    tensors = safetensors.torch.load_file(file)
    next(tensor for tensor in tensors.values() if tensor.dim()).view(-1)[0] = value
    safetensors.torch.save_file(tensors, file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][file.name] = file_entry(file).model_dump()
    (path / "manifest.json").write_text(sealed_json(manifest))


def saved(config: RunConfig) -> list[int]:
    return [int(path.name) for path in Checkpoints(run_path(config) / "checkpoints").paths()]


@pytest.mark.parametrize("where", ["policy", "ema_fast", "ema", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_one_number_anywhere_is_enough(where: str, value: float, make_config: Make, registry: Registry) -> None:
    trainer = Trainer(make_config(**OFTEN), registry)
    trainer.train(max_iterations=1)
    optimizer, policy = trainer.build().optimizer, trainer.build().policy
    assert optimizer.is_finite()
    moments = list(optimizer.adamw.state.values())[-1]
    place = policy._weights[where][-1] if where in STORED else moments[where]
    with torch.no_grad():
        place.view(-1)[-1] = value
    assert optimizer.is_finite() == (value == 1e30 and where not in STORED)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_sizes_that_can_still_be_computed_with(train: str) -> None:
    section = BackboneSection.model_validate({"use": "toy", "checkpoint": "toy", "train": train})
    policy = Policy(ToyBackbone(section, ToyOptions(), device=torch.device("cpu")), ObjectiveSection())
    weight = policy._weights["policy"][0]
    for size, sound in ((0.0, True), (-LARGEST, True), (2 * LARGEST, False), (-2 * LARGEST, False)):
        with torch.no_grad():
            weight.view(-1)[0] = size
        assert policy.is_finite() == sound


def test_an_update_that_destroys_the_weights_stops_the_run_and_a_lower_rate_goes_on(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**OFTEN)
    Trainer(config, registry).train(max_iterations=2)
    with monkeypatch.context() as patched:
        patched.setattr(Optimizer, "learning_rate", lambda self, update: 1e30)
        with pytest.raises(RunStopped) as caught:
            Trainer(config, registry).train(resume=True)
    message = str(caught.value)
    assert message.startswith(
        "in iteration 3 update 3, with a learning rate of 1e+30, made weights that are not finite"
    )
    assert "Lower optimizer.learning_rate (a resume may change it); the checkpoint of iteration 2 is kept" in message
    assert saved(config)[-1] == 2
    assert json.loads((run_path(config) / "outcome.json").read_text())["outcome"] == "failed"
    tame = make_config(optimizer={"learning_rate": 1e-4}, **OFTEN)
    assert Trainer(tame, registry).train(resume=True) == "finished"
    lines = (run_path(tame) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [0.01, 0.01, 1e-4, 1e-4]


@pytest.mark.parametrize("moment", [2, 1])
def test_an_update_that_leaves_no_numbers_is_not_saved(
    moment: int, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third update of the run gives nan. Two updates an iteration: it is the first or the second of one."""
    config = make_config(optimizer={"updates": moment, "max_grad_norm": None}, **OFTEN)
    update = Optimizer.apply

    def third(self: Optimizer, gradient: Accumulated) -> Any:
        result = update(self, gradient)
        if self.updates == 3:
            next(iter(self.policy.parameters.values())).data.view(-1)[0] = torch.nan
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Optimizer, "apply", third)
        with pytest.raises(RunStopped, match=r"optimizer\.max_grad_norm, which is null"):
            Trainer(config, registry).train()
    good = 2 // moment
    assert saved(config)[-1] == good
    assert Trainer(config, registry).train(resume=True) == "finished"
    never = make_config(run={"name": "never"}, optimizer={"updates": moment, "max_grad_norm": None}, **OFTEN)
    Trainer(never, registry).train()
    assert (run_path(config) / "metrics.jsonl").read_bytes() == (run_path(never) / "metrics.jsonl").read_bytes()


def test_weights_that_are_no_numbers_from_the_start(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the model's fault, and nothing is saved."""
    made = ToyBackbone.trainable

    def broken(self: ToyBackbone) -> Any:
        found = made(self)
        next(iter(found.values())).data.view(-1)[0] = torch.nan
        return found

    monkeypatch.setattr(ToyBackbone, "trainable", broken)
    config = make_config(evaluation={"every": 0, "at_start": False}, checkpoints={"every": 1})
    with pytest.raises(UserError, match=r"^backbone\.checkpoint: its trained weights are not all finite"):
        Trainer(config, registry).train()
    assert saved(config) == []


@pytest.mark.parametrize("name", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_such_numbers_is_refused_and_the_one_before_is_taken(
    name: str, value: float, make_config: Make, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(**OFTEN)
    Trainer(config, registry).train(max_iterations=3)
    path = run_path(config) / "checkpoints/000003"
    spoil(path, value, name)
    checkpoints = Checkpoints(path.parent)
    with pytest.raises(UserError, match=rf"000003/{name}\.safetensors: .* contains non-finite values"):
        checkpoints.find("3")
    assert checkpoints.newest().manifest.iteration == 2
    assert "non-finite" in caplog.text
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert saved(config) == [3, 4]


def test_while_updates_are_skipped_the_weights_before_the_last_one_are_kept(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of iteration 3 has corrupted the weights, though they are finite; checkpoints of iterations 4 to 6
    have the same."""
    config = make_config(
        run={"iterations": 9}, optimizer={"max_skipped": 2}, evaluation={"every": 0, "at_start": False},
        checkpoints={"every": 1},
    )  # fmt: skip
    update = Optimizer.apply

    def nonfinite(self: Optimizer, gradient: Accumulated) -> Any:
        return update(self, replace(gradient, loss=gradient.loss * torch.nan) if self.updates >= 3 else gradient)

    monkeypatch.setattr(Optimizer, "apply", nonfinite)
    with pytest.raises(RunStopped, match=r"the checkpoint of iteration 2 is kept too") as caught:
        Trainer(config, registry).train()
    assert "3 updates in a row" in str(caught.value)
    assert "the update of iteration 3 has corrupted" in str(caught.value)
    assert saved(config) == [2, 5, 6]


@pytest.mark.parametrize(
    ("every", "keep", "corrupted_at", "left", "reported"),
    [
        (1, 1, 2, [1, 2], "The checkpoint of iteration 1 is kept: move {0}/checkpoints/000002 away and resume with"),
        (3, 1, 2, [0], "They are not saved: the checkpoint of iteration 0 is kept; resume from it with"),
        (1, 1, 1, [0, 1], "The checkpoint of iteration 0 is kept: move {0}/checkpoints/000001 away and resume with"),
    ],
)
def test_weights_that_draw_nothing_are_why_nothing_is_scored(
    every: int,
    keep: int,
    corrupted_at: int,
    left: list[int],
    reported: str,
    make_config: Make,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are finite themselves. What was saved before the update that corrupted them is there, and goes on."""
    section: dict[str, Any] = {
        "evaluation": {"every": 0, "at_start": False},
        "checkpoints": {"every": every, "keep": keep},
    }
    config = make_config(run={"iterations": 4}, **section)
    trainer = Trainer(config, registry)
    with monkeypatch.context() as patched:
        decode = ToyBackbone.decode

        def nonfinite(self: ToyBackbone, latents: torch.Tensor) -> torch.Tensor:
            return decode(self, latents) * (torch.nan if trainer.state.updates >= corrupted_at else 1)

        patched.setattr(ToyBackbone, "decode", nonfinite)
        with pytest.raises(RunStopped) as caught:
            trainer.train()
    message = str(caught.value)
    assert message.startswith(
        f"100% of the media of iteration {corrupted_at + 1} are not finite: {corrupted_at} update"
    )
    assert reported.format(run_path(config)) + " a lower optimizer.learning_rate" in message
    assert saved(config) == left
    newest = run_path(config) / f"checkpoints/{left[-1]:06d}"
    if left[-1] == corrupted_at:
        newest.rename(newest.with_name("corrupted"))
    assert Trainer(config, registry).train(resume=True) == "finished"
    never = make_config(run={"name": "never", "iterations": 4}, **section)
    Trainer(never, registry).train()
    assert (run_path(config) / "metrics.jsonl").read_bytes() == (run_path(never) / "metrics.jsonl").read_bytes()


def test_media_of_the_base_model_that_are_not_finite(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = ToyBackbone.decode
    monkeypatch.setattr(ToyBackbone, "decode", lambda self, latents: decode(self, latents) * torch.nan)
    with pytest.raises(RunStopped, match=r"not finite, with the base model's weights: check backbone\.dtype"):
        Trainer(make_config(evaluation={"every": 0, "at_start": False}), registry).train()
    with pytest.raises(UserError, match="evaluation: the media of all 4 samples are not finite"):
        Trainer(make_config(run={"name": "evaluated"}), registry).train()


def test_an_evaluation_of_media_that_are_not_finite(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(evaluation={"every": 2, "at_start": False}, checkpoints={"every": 1, "keep": 1})
    trainer = Trainer(config, registry)
    decode = ToyBackbone.decode
    monkeypatch.setattr(
        ToyBackbone,
        "decode",
        lambda self, latents: decode(self, latents) * (torch.nan if trainer.state.updates == 2 else 1),
    )
    with pytest.raises(RunStopped, match=r"of the evaluation of iteration 2 are not finite.*They are not saved: the "):
        trainer.train()
    assert saved(config)[-1] == 1

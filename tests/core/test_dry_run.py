"""A dry run goes through a rollout, scores and an update of the sizes of training, and leaves everything as it was."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.contracts import MemberLoss
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.adamw import make_adamw
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.dry_run import dry_run, dry_run_training
from dgpo_core.training.memory import TooLittleMemoryError
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Conditioning, Predictions, Prompt, SampleKey, Scores
from dgpo_kit.toy import ToyBackbone, WinRate
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]

OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Broken(DirectGroupPreference):
    """Its statistic is fine, its loss is not."""

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        raise ZeroDivisionError("a mistake in the loss")


class Drawing(DirectGroupPreference):
    """Draws from every global generator, which a part must not; a dry run must not spread it."""

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        torch.rand(()), random.random(), np.random.rand()
        return super().loss(predictions, statistic)


class Plugin:
    @hookimpl
    def dgpo_objectives(self) -> list[Component]:
        return [
            Component(kind.__name__.lower(), "For tests.", f"{__name__}:{kind.__name__}") for kind in (Broken, Drawing)
        ]


@pytest.fixture
def with_objectives(registry: Registry) -> Registry:
    registry.register(Plugin(), distribution="dgpo-odd", version="1.2")
    return registry


def states(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in trainer.build().policy.state().items()}
    return found | {f"base/{i}": t.clone() for i, t in enumerate(trainer.build().policy._weights.get("base", []))}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_everything_is_as_before_and_training_gives_the_same_bits(
    make_config: Make, with_objectives: Registry, train: str
) -> None:
    optimizer = {"learning_rate": 0.5, "updates": 2, "micro_batch": 6}

    def trained(name: str, *, dry_run_first: bool) -> dict[str, Tensor]:
        config = make_config(
            run={"name": name, "iterations": 2},
            objective={"use": "drawing"},
            optimizer=optimizer,
            rollout={"micro_batch": 5},
        )
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"train": train})})
        trainer = Trainer(config, with_objectives)
        trainer.build()
        if dry_run_first:
            before, generators = states(trainer), (torch.get_rng_state(), random.getstate(), np.random.get_state())
            found = dry_run_training(trainer.build())
            assert found["peak memory, rollout"].endswith(" GiB on cpu, 5 samples at once")
            assert found["peak memory, update"].endswith(" GiB on cpu, micro-batches of 6")
            after = states(trainer)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert torch.equal(torch.get_rng_state(), generators[0])
            assert random.getstate() == generators[1]
            assert repr(np.random.get_state()) == repr(generators[2])
            assert trainer.build().optimizer.updates == trainer.build().policy._updates == 0
            assert not trainer.build().optimizer.state()
            assert all(p.grad is None for p in trainer.build().policy.parameters.values())
        trainer.train()
        return states(trainer)

    plain, after = trained("plain", dry_run_first=False), trained("after", dry_run_first=True)
    assert all(torch.equal(plain[name], after[name]) for name in plain)
    names = [n.partition("/")[2] for n in plain if n.startswith("policy/")]
    assert not all(torch.equal(plain[f"policy/{n}"], plain[f"ema_fast/{n}"]) for n in names)


def test_the_update_is_one_of_training(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves weights and averages and makes moments, by whole micro-batches, before all is put back."""
    config = make_config(optimizer={"learning_rate": 0.5, "micro_batch": 8})
    trainer = Trainer(config, registry)
    trainer.build()
    before, sizes, moved = states(trainer), [], []
    velocity = ToyBackbone.velocity

    def watched(self: ToyBackbone, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        sizes.append((len(x), torch.is_grad_enabled()))
        return velocity(self, x, sigma, conditioning)

    def restoring(self: Any) -> Any:
        moved.append(any(not torch.equal(before[n], t) for n, t in states(trainer).items()))
        return average(self, len(moved))

    average = type(trainer.build().policy).update_averages
    monkeypatch.setattr(ToyBackbone, "velocity", watched)
    monkeypatch.setattr(type(trainer.build().policy), "update_averages", lambda self, update: restoring(self))
    dry_run_training(trainer.build())
    assert moved == [True]
    assert [size for size, gradient in sizes if gradient] == [8, 8]  # at two times
    assert max(size for size, gradient in sizes if not gradient) == 16  # the rollout, at once


def test_an_objective_that_fails_is_named(make_config: Make, with_objectives: Registry, tmp_path: Path) -> None:
    trainer = Trainer(make_config(objective={"use": "broken"}), with_objectives)
    with pytest.raises(UserError) as raised:
        dry_run(trainer)
    said = str(raised.value)
    assert said.startswith("dry run: the update with objective broken failed: plugin dgpo-odd 1.2 failed with ")
    assert "ZeroDivisionError: a mistake in the loss" in said
    assert list(tmp_path.iterdir()) == []


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """No more than `most` samples fit where there is a gradient."""
    velocity = ToyBackbone.velocity

    def limited(self: ToyBackbone, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if torch.is_grad_enabled() and len(x) > most:
            raise OOM
        return velocity(self, x, sigma, conditioning)

    monkeypatch.setattr(ToyBackbone, "velocity", limited)


class Reported(Callback):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


def test_a_micro_batch_that_does_not_fit_is_named_with_what_does(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 3)
    reported = Reported()
    found = dry_run(Trainer(make_config(optimizer={"micro_batch": 8}), registry, callbacks=[reported]))
    assert found["peak memory, update"].endswith("micro-batches of 2")
    assert reported.warnings == [
        "warning: optimizer.micro_batch: 8 samples do not fit into the device's memory, 2 do; set "
        "`optimizer.micro_batch: 2`"
    ]


def test_where_nothing_fits_the_dry_run_fails(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(TooLittleMemoryError) as raised:
        dry_run(Trainer(make_config(), registry))
    assert re.match(r"dry run: optimizer\.micro_batch: .* single sample", str(raised.value))
    assert str(raised.value).endswith("the rollout of 16 samples and their scoring did fit")


def test_moments_that_do_not_fit(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        made = make_adamw(*arguments)

        def step() -> None:
            raise OOM

        monkeypatch.setattr(made, "step", step)
        return made

    monkeypatch.setattr("dgpo_core.training.optimizer.make_adamw", full)
    with pytest.raises(TooLittleMemoryError, match=r"with micro-batches of 4; set `optimizer\.micro_batch: 2` or less"):
        dry_run(Trainer(make_config(), registry))


def test_a_roll_out_that_does_not_fit(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as on a card: not even a single sample."""

    def full(self: Trainer, *arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    trainer = Trainer(make_config(rollout={"micro_batch": 6}), registry)
    trainer.build()
    monkeypatch.setattr(trainer.build().training_rollout_sampler, "_micro_batch", full)
    with pytest.raises(TooLittleMemoryError, match=r"rollout\.micro_batch: .* with a single sample"):
        dry_run_training(trainer.build())


def test_rewards_that_compare_are_shown_whole_groups(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the micro-batch that is rolled out ends inside of one."""
    shown: list[tuple[int, int]] = []
    ask = WinRate.score_group

    def score_group(self: WinRate, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        shown.append((len(media), len(set(keys))))
        return ask(self, media, prompt, keys)

    monkeypatch.setattr(WinRate, "score_group", score_group)
    members = make_config().rollout.group_size
    for micro_batch, groups in ((members - 1, 1), (members + 1, 2), (2 * members, 2)):
        config = make_config(
            rewards=[{"use": "win-rate"}],
            rollout={"micro_batch": micro_batch},
            evaluation={"samples_per_prompt": 2},
        )
        trainer = Trainer(config, registry)
        trainer.build()
        shown.clear()
        found = dry_run_training(trainer.build())
        assert shown == [(members, members)] * groups
        assert found["peak memory, scoring"].endswith(f" GiB on cpu, {micro_batch} samples at once")
        trainer.close()


def test_rewards_that_compare_are_shown_all_candidates(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    steps: list[int] = []
    ask, draw = WinRate.score_group, RolloutSampler._micro_batch

    def score_group(self: WinRate, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        shown.append(len(media))
        return ask(self, media, prompt, keys)

    def micro_batch(self: RolloutSampler, *arguments: Any) -> Any:
        steps.append(self.steps)
        return draw(self, *arguments)

    monkeypatch.setattr(WinRate, "score_group", score_group)
    monkeypatch.setattr(RolloutSampler, "_micro_batch", micro_batch)
    rollout = {"micro_batch": 5, "explore": {"candidates": 7, "steps": 1}}
    evaluation = {"samples_per_prompt": 2}
    trainer = Trainer(make_config(rewards=[{"use": "win-rate"}], rollout=rollout, evaluation=evaluation), registry)
    dry_run_training(trainer.build())
    assert shown == [7]
    assert steps == [1, 3], "a micro-batch of candidates, and one that is trained on"
    trainer.close()

"""`run.deterministic`: what it sets on CUDA, and what is said of operators without a deterministic form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.distributed import runtime
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.determinism import WORKSPACE, without_deterministic_form
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    cudnn, filled = torch.backends.cudnn, torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.benchmark, cudnn.deterministic = before[1:]
    torch.utils.deterministic.fill_uninitialized_memory = filled


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic, os.environ.get(WORKSPACE)


def on_cuda(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> Runtime:
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cuda", 0))
    return Runtime(config)


def put(values: Tensor) -> Tensor:
    """An operator that has no deterministic form on any device."""
    return values.put_(torch.tensor([0]), torch.ones(1))


def test_what_is_set_on_cuda(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = on_cuda(monkeypatch, make_config(run={"deterministic": True}))
    assert made.deterministic
    assert flags() == (True, False, True, ":4096:8")


def test_nothing_is_set_unless_asked_for(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = flags()
    assert not on_cuda(monkeypatch, make_config()).deterministic
    assert flags() == before


def test_nothing_changes_on_the_cpu(make_config: Make, registry: Registry) -> None:
    before = flags()
    trainer = Trainer(make_config(run={"deterministic": True}), registry)
    assert trainer.build().facts()["device"] == "cpu"
    assert flags() == before
    trainer.close()


def test_the_run_says_it(make_config: Make, registry: Registry) -> None:
    trainer = Trainer(make_config(run={"deterministic": True}), registry)
    trainer.runtime.deterministic = True
    assert trainer.build().facts()["device"] == "cpu, deterministic algorithms"
    trainer.close()


def test_a_workspace_of_the_user(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    on_cuda(monkeypatch, make_config(run={"deterministic": True}))
    assert flags() == (True, False, True, ":16:8")
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UserError, match=r"run\.deterministic: .*':0:0'.*:4096:8 or :16:8"):
        on_cuda(monkeypatch, make_config(run={"deterministic": True}))


def test_torch_words_its_refusal_as_expected() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as raised:
        put(torch.zeros(2))
    assert without_deterministic_form(raised.value) == (
        "run.deterministic: the operator put_ has no deterministic form on this device; set it to false"
    )
    assert without_deterministic_form(RuntimeError("anything else")) is None
    assert without_deterministic_form(ValueError(str(raised.value))) is None


def test_a_run_with_such_an_operator_ends_with_its_state_saved(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoints={"every": 100})
    Trainer(config, registry).train(max_iterations=2)
    velocity = ToyBackbone.velocity
    monkeypatch.setattr(ToyBackbone, "velocity", lambda self, *given: velocity(self, put(given[0]), *given[1:]))
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RunStopped, match=r"^run\.deterministic: the operator put_ .*the state after iteration 2 is"):
        Trainer(config, registry).train(resume=True)


def test_a_reward_with_such_an_operator() -> None:
    class Scattered(RewardModel):
        range = (0.0, 1.0)

        def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            return Scores(put(media.flatten(1).mean(1)), torch.zeros(len(media), dtype=torch.bool))

    torch.use_deterministic_algorithms(True)
    failures: list[str] = []
    reward = Reward("a", 1.0, Scattered(None, device=torch.device("cpu")))
    scores = checked_score(reward, torch.rand(1, 3, 2, 2), [Prompt("")], failures)
    assert bool(scores.missing.all())
    assert failures == [
        "a: run.deterministic: the operator put_ has no deterministic form on this device; set it to false, or use a "
        "service for this reward"
    ]

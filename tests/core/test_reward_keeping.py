"""The optional hooks of rewards: what they keep in the run directory, what they cost, and how they end a command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import RewardUnusable, UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.reward_keeping import costs_of, keep_in, total_costs
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import ToyPlugin, run_data
from dgpo_schemas.base import Float, Options
from dgpo_schemas.run import RunConfig

CPU = torch.device("cpu")


class KeepingOptions(Options):
    """Which instance it is, and when it becomes unusable."""

    number: Float = 0.0
    until: float = math.inf


class Keeping(RewardModel):
    """Counts its calls in a file, and costs 2 a sample."""

    range = (0.0, 1.0)
    options: KeepingOptions

    def __init__(self, options: KeepingOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        self.directory: Path | None = None
        self.scored = 0
        self.total = 0

    def keep_in(self, directory: Path) -> None:
        assert self.directory is None
        if (directory / "other").exists():
            raise UserError(f"{directory}: is of another reward")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory

    def costs(self) -> Mapping[str, float]:
        scored, self.scored = self.scored, 0
        return {"requests": 2 * scored, "p95_seconds": float(scored), "broken": math.nan}

    def score(self, media: Tensor, prompts: Any) -> Scores:
        self.scored += len(media)
        self.total += len(media)
        if self.total > self.options.until:
            raise RewardUnusable("the key is wrong")
        values = media.float().mean((1, 2, 3))
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))


class Plugin:
    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return [Component("keeping", "Keeps", f"{__name__}:Keeping", KeepingOptions)]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    import sys

    module = sys.modules[Keeping.__module__]
    monkeypatch.setitem(sys.modules, __name__, module)
    found = Registry(discover=False)
    found.register(__import__("dgpo_core.builtin.plugin", fromlist=["x"]), distribution="dgpo")
    found.register(ToyPlugin(reward="toy"), distribution="toy")
    found.register(Plugin(), distribution="keeping")
    return found


def configured(directory: Path, *rewards: dict[str, Any], **options: Any) -> RunConfig:
    listed = list(rewards) or [{"use": "keeping", "options": options}]
    evaluation = {"every": 2, "images": 0, "prompts": 2}
    return RunConfig.model_validate(run_data(directory, rewards=listed, run={"iterations": 2}, evaluation=evaluation))


def test_costs_are_logged_once_and_never_in_the_metrics(tmp_path: Path, registry: Registry) -> None:
    assert Trainer(configured(tmp_path), registry).train() == "finished"
    lines = [json.loads(line) for line in (tmp_path / "toy/timings.jsonl").read_text().splitlines()]
    assert [line["costs"] for line in lines] == [{"keeping": {"requests": 2.0 * n, "p95_seconds": n}} for n in (18, 18)]
    assert "costs" not in (tmp_path / "toy/metrics.jsonl").read_text()


def test_a_run_without_such_rewards_has_no_line_of_costs(tmp_path: Path, registry: Registry) -> None:
    Trainer(configured(tmp_path, {"use": "toy"}), registry).train()
    assert "costs" not in (tmp_path / "toy/timings.jsonl").read_text()
    assert not (tmp_path / "toy/rewards").exists()


def test_each_model_has_a_directory_of_its_own(tmp_path: Path) -> None:
    models = [Keeping(KeepingOptions(number=n), device=CPU) for n in range(3)]
    rewards = [Reward("a", 1.0, models[0]), Reward("b", 1.0, models[0]), Reward("a", 1.0, models[1]),
               Reward("c", 1.0, models[2])]  # fmt: skip
    keep_in(rewards, tmp_path)
    assert [model.directory for model in models] == [tmp_path / "rewards" / name for name in ("a", "a-2", "c")]


def test_a_directory_that_a_reward_rejects_ends_the_run_before_its_first_sample(
    tmp_path: Path, registry: Registry
) -> None:
    (tmp_path / "toy/rewards/keeping/other").mkdir(parents=True)
    with pytest.raises(UserError, match="rewards/keeping: is of another reward"):
        Trainer(configured(tmp_path), registry).train()


def test_costs_of_processes_are_summed_and_of_seconds_the_largest() -> None:
    parts = [
        {"a": {"requests": 3.0, "p95_seconds": 0.5}},
        {},
        {"a": {"requests": 4.0, "p95_seconds": 0.25}, "b": {"x": 1.0}},
    ]
    assert total_costs(parts) == {"a": {"requests": 7.0, "p95_seconds": 0.5}, "b": {"x": 1.0}}


def test_costs_that_raise_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Keeping):
        def costs(self) -> Mapping[str, float]:
            raise RuntimeError("no")

    rewards = [Reward("broken", 1.0, Broken(KeepingOptions(), device=CPU))]
    assert costs_of(rewards) == {}
    assert "reward broken: its costs could not be read" in caplog.text


def test_an_unusable_reward_ends_the_command_and_not_a_sample() -> None:
    model = Keeping(KeepingOptions(until=0), device=CPU)
    with pytest.raises(RewardUnusable, match="the key is wrong"):
        checked_score(Reward("keeping", 1.0, model), torch.rand(2, 3, 4, 4), [Prompt("x")] * 2)


@pytest.mark.parametrize(("until", "finished"), [(0, 0), (2, 0), (2 + 16, 1)])
def test_an_unusable_reward_ends_the_run_with_what_was_finished(
    tmp_path: Path, registry: Registry, until: int, finished: int
) -> None:
    """In the evaluation of the base model, in the first iteration, in the second."""
    with pytest.raises(RewardUnusable, match="the key is wrong"):
        Trainer(configured(tmp_path, until=until), registry).train()
    saved = [path.name for path in (tmp_path / "toy/checkpoints").glob("0*")]
    assert max(saved) == f"{finished:06d}"

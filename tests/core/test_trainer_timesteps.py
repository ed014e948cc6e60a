"""The loop with a timestep policy that measures the model: when it is shown it, what is logged, what a stop saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import RunStopped
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import BrightnessReward, ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
NAN = float("nan")


class Seeks(TimestepPolicy):
    """Half-way from where it was to a range above what few steps do to samples; measured every two iterations."""

    measures = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.low = 0.0
        self.live: dict[str, Any] = {"low": self.low}

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        if context.iteration % 2 == 0:
            distance = float((probe.samples(3) - probe.samples(3, refine=4)).square().mean().sqrt())
            self.low = 0.5 * self.low + 0.5 * distance / (distance + 0.1)
            self.live["low"] = self.low

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        return max(context.t_min, self.low), 0.9 * context.t_max

    def metrics(self) -> Mapping[str, float]:
        return {"low": self.low, "t_min": -1.0, "unknown": NAN}

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        low, high = self.bounds(context)
        return low + (high - low) * draws.uniform(count)

    def state_dict(self) -> dict[str, Any]:
        return self.live  # not a copy: the trainer must not rely on one

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.live = dict(state)
        self.low = state["low"]


class Looks(Seeks):
    """Measures, and does not mind."""

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        return context.t_min, context.t_max

    def metrics(self) -> Mapping[str, float]:
        return {}


class _Plugin:
    @hookimpl
    def dgpo_timestep_policies(self) -> list[Component]:
        return [Component(kind.__name__.lower(), "Measures", f"{__name__}:{kind.__name__}") for kind in (Seeks, Looks)]


@pytest.fixture
def registry(registry: Registry) -> Registry:
    registry.register(_Plugin(), distribution="seeks")
    return registry


def logs(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def fingerprint(path: Path) -> dict[str, bytes]:
    """Logs, weights, and the manifest with the policy's state."""
    newest = sorted((path / "checkpoints").iterdir())[-1]
    saved = [file for file in sorted(newest.iterdir()) if file.name != "clock.json"]
    files = [path / "metrics.jsonl", path / "evaluations.jsonl", *saved]
    return {file.name: file.read_bytes() for file in files}


def seeking(make_config: Make, **changes: Any) -> RunConfig:
    return make_config(**{"timesteps": {"use": "seeks", "t_min": 0.0}, "optimizer": {"learning_rate": 0.05}} | changes)


def test_bounds_and_findings_are_logged(make_config: Make, registry: Registry) -> None:
    """A value that is no number is left out, and the bounds' names are theirs."""
    config = seeking(make_config)
    Trainer(config, registry).train()
    records = logs(run_path(config))
    for record in records:
        reported = record["timesteps"]
        assert reported.keys() == {"low", "t_min", "t_max"}
        assert reported["t_min"] == reported["low"]
        assert reported["t_max"] == 0.9
        assert reported["t_min"] <= record["t_min"] <= record["t_max"] <= reported["t_max"]
    lows = [record["timesteps"]["low"] for record in records]
    assert 0 < lows[0] == lows[1] < lows[2] == lows[3]


def test_a_policy_that_stays_reports_the_runs_range(make_config: Make, registry: Registry) -> None:
    config = make_config(timesteps={"t_min": 0.3, "t_max": 0.8}, run={"iterations": 1})
    Trainer(config, registry).train()
    assert logs(run_path(config))[0]["timesteps"] == {"t_min": 0.3, "t_max": 0.8}


def test_measuring_is_timed_where_it_takes_place(make_config: Make, registry: Registry) -> None:
    for name, use, phases in (("a", "seeks", 1), ("b", "uniform", 0)):
        config = make_config(run={"name": name, "iterations": 2}, timesteps={"use": use})
        Trainer(config, registry).train()
        for timing in logs(run_path(config), "timings.jsonl"):
            assert ("measure" in timing["phases"]) == phases
            assert sum(v["seconds"] for n, v in timing["phases"].items() if n != "score") > 0


def test_the_model_is_measured_as_the_rollouts_will_see_it(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before them, and from the weights that they are drawn from."""
    seen: list[str] = []
    sample_groups = RolloutSampler.sample_groups

    def watched(self: RolloutSampler, prompts: Any, members: int, draws: Draws, model: Any, **keywords: Any) -> Any:
        seen.append(f"{model} {members} x {self.steps}")
        return sample_groups(self, prompts, members, draws, model, **keywords)

    monkeypatch.setattr(RolloutSampler, "sample_groups", watched)
    config = seeking(
        make_config, objective={"ema_rollouts_after": 1}, prompts={"heldout": None}, evaluation={"every": 0}
    )
    Trainer(config, registry).train()
    expected = [["1 x 3", "1 x 12", "4 x 3", "4 x 3"]] * 2
    assert seen == [
        f"{model} {one}" for model, each in zip(("policy", "ema_fast"), expected, strict=True) for one in each
    ]


@pytest.mark.parametrize(("sampler", "expected"), [("flow-euler", True), ("flow-dpmpp", True), ("flow-sde", False)])
def test_policies_know_whether_samples_can_be_compared(
    sampler: str, expected: bool, make_config: Make, registry: Registry
) -> None:
    trainer = Trainer(make_config(rollout={"sampler": sampler}), registry)
    assert trainer.build().timestep_context(0).deterministic is expected


def test_resume_is_bit_exact_at_every_iteration(make_config: Make, registry: Registry) -> None:
    config = seeking(make_config)
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    assert json.loads(wanted["manifest.json"])["timesteps"]["low"] > 0
    for stop_after in (1, 2, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert fingerprint(run_path(config)) == wanted


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_a_stop_while_samples_are_drawn_measures_no_iteration_twice(
    iteration: int, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved is the state before this iteration was measured: it will be again."""
    config = seeking(make_config, run={"iterations": 3}, checkpoints={"every": 10}, rollout={"micro_batch": 8},
                     prompts={"heldout": None}, evaluation={"every": 0})  # fmt: skip
    Trainer(config, registry).train()
    wanted = (run_path(config) / "metrics.jsonl").read_bytes()
    shutil.rmtree(run_path(config))
    stop, decode, decoded = StopRequest(), ToyBackbone.decode, []

    def stopping(self: ToyBackbone, x0: Tensor) -> Tensor:
        decoded.append(1)
        if len(decoded) == 2 * iteration + 1:  # the first of the iteration's two micro-batches
            stop.request()
        return decode(self, x0)

    with monkeypatch.context() as patched:
        patched.setattr(ToyBackbone, "decode", stopping)
        assert Trainer(config, registry, stop=stop).train() == "interrupted"
    assert (run_path(config) / f"checkpoints/{iteration:06d}").is_dir()
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert (run_path(config) / "metrics.jsonl").read_bytes() == wanted


def test_a_run_that_gives_up_saves_the_state_before_the_iteration(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = seeking(make_config, prompts={"heldout": None}, evaluation={"every": 0}, checkpoints={"every": 10})
    Trainer(config, registry).train()
    wanted = (run_path(config) / "metrics.jsonl").read_bytes()
    shutil.rmtree(run_path(config))
    with monkeypatch.context() as patched:
        calls = []
        score = BrightnessReward.score

        def fails_at_last(self: BrightnessReward, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:  # the third iteration measures
                raise RuntimeError("the lamp is broken")
            return score(self, *arguments)

        patched.setattr(BrightnessReward, "score", fails_at_last)
        with pytest.raises(RunStopped, match="the lamp is broken"):
            Trainer(config, registry).train()
    assert (run_path(config) / "checkpoints/000002").is_dir()
    Trainer(config, registry).train(resume=True)
    assert (run_path(config) / "metrics.jsonl").read_bytes() == wanted


def test_measuring_leaves_rollouts_and_training_as_they_were(make_config: Make, registry: Registry) -> None:
    """A policy that only looks gives the run that never looked."""

    found = []
    for use in ("looks", "uniform"):
        config = make_config(run={"name": use}, timesteps={"use": use})
        torch.manual_seed(len(found))
        Trainer(config, registry).train()
        found.append((run_path(config) / "metrics.jsonl").read_bytes())
    assert found[0] == found[1]

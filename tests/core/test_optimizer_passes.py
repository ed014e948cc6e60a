"""Several passes over one rollout, against AdamW steps written by hand in float64; what they compare with, and how
they are counted, stopped and resumed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.adamw import learning_rate
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.state import RunState
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import TrainingBatch
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
Weights = dict[str, Tensor]
DOUBLE = {"use": "toy", "checkpoint": "toy", "lora": {"rank": 4, "alpha": 4}, "options": {"double": True}}
UPDATES = PASSES = TIMES = 2
SEED = 3
QUIET: dict[str, Any] = {"prompts": {"heldout": None}, "evaluation": {"every": 0}}


def logs(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / "metrics.jsonl").read_text().splitlines()]


def newest(config: RunConfig) -> Path:
    return sorted((run_path(config) / "checkpoints").iterdir())[-1]


class Kept(Callback):
    """Keeps the groups of each iteration."""

    def __init__(self) -> None:
        self.batches: list[TrainingBatch] = []

    def on_advantages(self, iteration: int, groups: Any, batch: TrainingBatch) -> None:
        self.batches.append(batch)


# -- by hand ----------------------------------------------------------------------------------------------------------


class ByHand:
    """DGPO with a clip and a KL term, member by member, and AdamW, from their papers; nothing of the engine."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.model, self.model_old, self.model_base = (
            ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu")) for _ in range(3)
        )
        self.policy = {name: p.detach().clone() for name, p in self.model.trainable().items()}
        self.old = {name: value.clone() for name, value in self.policy.items()}
        self.first = {name: torch.zeros_like(value) for name, value in self.policy.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.policy.items()}
        self.updates, self.clipped = 0, False

    def velocity(self, model: ToyBackbone, x: Tensor, sigma: float, text: str) -> Tensor:
        row = model.encode(prompts_of([text]))
        return model.velocity(x[None], torch.tensor([sigma], dtype=torch.float64), row)[0]

    def weight(self, sigma: float) -> float:
        """That of the loss at a time; the mean of sigma over [0.3, 1] is 0.65."""
        return sigma / 0.65 if self.config.timesteps.options["weights"] == "sigma" else 1.0

    def gradient(self, batch: TrainingBatch, groups: range, sigmas: list[float], key: Draws) -> Weights:
        section, (_, size) = self.config.objective, batch.scored.shape
        total = {name: torch.zeros_like(value) for name, value in self.policy.items()}
        with torch.no_grad():
            for model, weights in ((self.model, self.policy), (self.model_old, self.old)):
                for name, parameter in model.trainable().items():
                    parameter.copy_(weights[name])
        for t, sigma in enumerate(sigmas):
            for g in groups:
                noise = normal_rows([key.at("noise", t).at(g)], tuple(batch.x0[0].shape), "cpu")[0].double()
                preference, penalty = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
                for i in range(size):
                    x0, text = batch.x0[g * size + i], batch.prompts[g].text
                    x, target = (1 - sigma) * x0 + sigma * noise, noise - x0
                    with torch.no_grad():
                        old = (self.velocity(self.model_old, x, sigma, text) - target).square().mean()
                        base = self.velocity(self.model_base, x, sigma, text)
                    v = self.velocity(self.model, x, sigma, text)
                    dsm, reference = (v - target).square().mean(), (base - target).square().mean()
                    ratio, better = math.exp(float(old - dsm.detach())), float(batch.advantages[g, i]) > 0
                    assert section.clip is not None
                    if (better and ratio > 1 + section.clip) or (not better and ratio < 1 - section.clip):
                        self.clipped = True
                        dsm = dsm.detach()
                    preference = preference + section.beta / size * batch.signed_weights[g, i] * (dsm - reference)
                    penalty = penalty + (v - base).square().mean() / size
                loss = self.weight(sigma) * -torch.nn.functional.logsigmoid(-preference) / section.beta
                loss = loss + self.weight(sigma) * section.kl * penalty
                found = torch.autograd.grad(loss / (len(groups) * len(sigmas)), list(self.model.trainable().values()))
                for name, part in zip(total, found, strict=True):
                    total[name] += part
        return total

    def update(self, gradient: Weights) -> None:
        """AdamW (arXiv 1711.05101, algorithm 2) after the gradient's norm is clipped."""
        section = self.config.optimizer
        assert section.max_grad_norm is not None
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        self.updates += 1
        for name, g in gradient.items():
            g = g * min(1.0, section.max_grad_norm / (norm + 1e-6))
            one, two = section.betas
            self.first[name] = one * self.first[name] + (1 - one) * g
            self.second[name] = two * self.second[name] + (1 - two) * g * g
            mean, square = self.first[name] / (1 - one**self.updates), self.second[name] / (1 - two**self.updates)
            step = mean / (square.sqrt() + section.epsilon) + section.weight_decay * self.policy[name]
            self.policy[name] = self.policy[name] - section.learning_rate * step

    def move(self, k: int) -> None:
        """The fast EMA, after k updates that do not count yet."""
        fast = self.config.objective.ema_fast
        d = min(fast.max_decay, fast.ramp * k)
        self.old = {name: d * old + (1 - d) * self.policy[name] for name, old in self.old.items()}

    def iterate(self, iteration: int, batch: TrainingBatch) -> None:
        begun, per = self.updates, self.config.objective.ema_fast.per
        for number in range(PASSES):
            key = Draws(SEED).at("iteration", iteration)
            key = key if number == 0 else key.at("pass", number)
            sigmas = (0.3 + 0.7 * key.at("timesteps").uniform(TIMES)).tolist()
            half = len(batch.prompts) // UPDATES
            for groups in (range(half), range(half, 2 * half)):
                self.update(self.gradient(batch, groups, sigmas, key.at("optimise")))
                if per == "update":
                    self.move(self.updates - 1)
        if per == "iteration":
            self.move(begun)


@pytest.mark.parametrize(("per", "weighted"), [("update", "none"), ("iteration", "none"), ("iteration", "sigma")])
def test_two_passes_are_the_steps_written_by_hand(
    per: str, weighted: str, make_config: Make, registry: Registry
) -> None:
    config = make_config(
        run={"iterations": 2, "seed": SEED}, backbone=DOUBLE,
        timesteps={"count": TIMES, "t_min": 0.3, "options": {"weights": weighted}},
        optimizer={"updates": UPDATES, "passes": PASSES, "learning_rate": 0.02, "weight_decay": 0.01, "epsilon": 1e-4},
        objective={
            "clip": 1e-3, "kl": 0.02, "ema_rollouts_after": None,
            "ema_fast": {"max_decay": 0.5, "ramp": 0.1, "per": per},
        }, **QUIET,
    )  # fmt: skip
    kept = Kept()
    Trainer(config, registry, callbacks=[kept]).train()
    hand = ByHand(config)
    start = {name: value.clone() for name, value in hand.policy.items()}
    for iteration, batch in enumerate(kept.batches):
        hand.iterate(iteration, batch)
    found = load(newest(config)).weights
    assert hand.clipped, "the old policy must matter"
    for name, value in hand.policy.items():
        assert float((value - start[name]).abs().max()) > 1e-2
        assert float((found[f"policy/{name}"] - value).abs().max()) < 1e-10
        assert float((found[f"ema_fast/{name}"] - hand.old[name]).abs().max()) < 1e-10
    assert any(float((hand.old[name] - value).abs().max()) > 1e-3 for name, value in hand.policy.items())


# -- what the passes compare with -------------------------------------------------------------------------------------


def make(**fast: Any) -> Optimizer:
    data = run_data(Path("unused"), objective={"ema_fast": fast}) | {"backbone": DOUBLE}
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    policy, objective = Policy(backbone, config.objective), DirectGroupPreference(config.objective, ToyOptions())
    return Optimizer(config, policy, objective, ConditioningCache(backbone), autocast=nullcontext)


def weights(policy: Policy, model: str) -> Tensor:
    return torch.cat([t.flatten() for name, t in policy.state().items() if name.startswith(f"{model}/")]).clone()


def trained(policy: Policy, update: int) -> None:
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(update)
    policy.update_averages(update)


def test_without_a_decay_the_old_policy_is_the_policy_that_began_the_iteration() -> None:
    policy = make(max_decay=0.0, per="iteration").policy
    update = 0
    for _ in range(4):
        before = weights(policy, "policy")
        assert policy.fast_is_policy
        for _ in range(3):
            trained(policy, update := update + 1)
            assert torch.equal(weights(policy, "ema_fast"), before)
            assert not policy.fast_is_policy
        policy.end_iteration()


def test_its_decay_counts_the_updates_before_the_iteration() -> None:
    policy = make(max_decay=0.45, ramp=0.1, per="iteration").policy
    expected = weights(policy, "policy")
    for decay, update in ((0.0, 1), (0.2, 3), (0.4, 5), (0.45, 7)):
        trained(policy, update)
        trained(policy, update + 1)
        policy.end_iteration()
        expected = torch.lerp(weights(policy, "policy"), expected, decay)
        assert torch.allclose(weights(policy, "ema_fast"), expected, rtol=0, atol=1e-12)
        assert not policy.fast_is_policy


def test_with_one_update_an_iteration_both_rules_are_one() -> None:
    both = [make(max_decay=0.3, ramp=0.1, per=per).policy for per in ("update", "iteration")]
    for update in range(1, 7):
        for policy in both:
            trained(policy, update)
            policy.end_iteration()
        assert torch.equal(*(weights(policy, "ema_fast") for policy in both))


def test_an_iteration_of_skipped_updates_moves_nothing() -> None:
    """So that what is saved after it, without updates, is the state before it."""
    policy = make(max_decay=0.5, ramp=0.5, per="iteration").policy
    for update in (1, 2):
        trained(policy, update)
        policy.end_iteration()
    before = weights(policy, "ema_fast")
    policy.end_iteration()
    assert torch.equal(weights(policy, "ema_fast"), before)
    assert not torch.equal(before, weights(policy, "policy"))


def test_an_old_policy_that_follows_each_update_is_pointed_out(make_config: Make, registry: Registry) -> None:
    def notes(passes: int, **objective: Any) -> list[str]:
        config = make_config(optimizer={"passes": passes}, objective=objective)
        return [note for note in Trainer(config, registry).build().notes() if "ema_fast.per" in note]

    assert "in 3 passes" in notes(3, clip=0.01)[0]
    assert "in 2 passes" in notes(2, clip=None, reference="ema_fast")[0]
    assert not notes(1, clip=0.01)
    assert not notes(3, clip=None)
    assert not notes(3, clip=0.01, ema_fast={"per": "iteration"})


# -- counts -----------------------------------------------------------------------------------------------------------


def test_metrics_are_of_all_passes(make_config: Make, registry: Registry) -> None:
    """With a learning rate so small that nothing moves, errors are averages over the times of all passes."""
    section = {"learning_rate": 1e-12, "schedule": "linear"}
    one, three = (
        make_config(run={"name": f"p{passes}", "iterations": 2}, optimizer=section | {"passes": passes}, **QUIET)
        for passes in (1, 3)
    )
    for config in (one, three):
        Trainer(config, registry).train()
    for iteration, (a, b) in enumerate(zip(logs(one), logs(three), strict=True), 1):
        assert (a["updates"], b["updates"]) == (iteration, 3 * iteration)
        assert b["optimized_members"] == 3 * a["optimized_members"] == 3 * 4 * 4 * 2
        assert b["reward"] == a["reward"]
        assert b["t_min"] < a["t_min"]
        assert b["dsm"] != a["dsm"]
        assert b["learning_rate"] == pytest.approx(1e-12 * (1 - (3 * iteration - 1) / 6), rel=1e-12)


def test_the_schedule_ends_with_the_run() -> None:
    section = RunConfig.model_validate(run_data("unused", optimizer={"passes": 3, "updates": 2, "schedule": "linear"}))
    assert section.optimizer.updates_per_iteration == 6
    total = section.run.iterations * 6
    made = Optimizer.learning_rate(SimpleNamespace(config=section, section=section.optimizer), total - 1)  # type: ignore[arg-type]
    assert made == learning_rate(section.optimizer, total - 1, total) == pytest.approx(0.01 / total)


def test_skipped_updates_are_counted_by_the_iteration() -> None:
    config = RunConfig.model_validate(run_data("unused", optimizer={"passes": 3, "updates": 2}))
    state = RunState(config, iteration=9, skipped_in_a_row=13)
    assert state.last_update == 7, "two iterations of six skipped updates each, and one more update"


# -- stop and resume --------------------------------------------------------------------------------------------------

LATE: dict[str, Any] = {
    "optimizer": {"passes": 3, "updates": 2, "learning_rate": 0.02},
    "objective": {"clip": 1e-3, "ema_rollouts_after": 0, "ema_fast": {"max_decay": 0.5, "ramp": 0.05,
                                                                      "per": "iteration"}},
}  # fmt: skip


def result(config: RunConfig) -> Mapping[str, bytes]:
    files = [run_path(config) / "metrics.jsonl", *sorted(newest(config).glob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("max_decay", [0.0, 0.5])
def test_resume_is_bit_exact_at_every_iteration(max_decay: float, make_config: Make, registry: Registry) -> None:
    fast = LATE["objective"]["ema_fast"] | {"max_decay": max_decay}
    config = make_config(**LATE | {"objective": LATE["objective"] | {"ema_fast": fast}}, **QUIET)
    Trainer(config, registry).train()
    wanted = result(config)
    assert logs(config)[-1]["clip_fraction"] > 0
    for stop_after in (1, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert result(config) == wanted


class StopsIn(Callback):
    """Asks to stop when so many members were optimized."""

    def __init__(self, stop: StopRequest, members: int) -> None:
        self.stop, self.members = stop, members

    def on_progress(self, phase: str, done: int, total: int) -> None:
        if phase == "optimize":
            assert total == 4 * 4 * 2 * 3
            if done >= self.members:
                self.stop.request()


@pytest.mark.parametrize(("members", "saved"), [(8, 0), (40, 1)])
def test_a_stop_is_obeyed_before_the_first_update_or_after_the_last(
    members: int, saved: int, make_config: Make, registry: Registry
) -> None:
    config = make_config(**LATE, **QUIET, checkpoints={"every": 10})
    Trainer(config, registry).train()
    wanted = result(config)
    shutil.rmtree(run_path(config))
    stop = StopRequest()
    trainer = Trainer(config, registry, callbacks=[StopsIn(stop, members)], stop=stop)
    assert trainer.train() == "interrupted"
    assert newest(config).name == f"{saved:06d}"
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert result(config) == wanted

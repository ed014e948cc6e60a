"""How many passes an update takes, and that a pass that is saved changes no bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.config.locations import run_path
from dgpo_core.draws import Draws
from dgpo_core.flow.preference import group_means
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.microbatches import Update
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.statistics import member_loss
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, TrainingBatch
from dgpo_kit.toy import run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig
from tests.core.test_objective import GROUPS, MEMBERS, SIGMAS, make, make_batch

Make = Callable[..., RunConfig]
SD3 = {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "options": {"text_length": 0}}


def counted(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The passes of each model; those with gradient count as "gradient"."""
    found: Counter[str] = Counter()
    velocity = policy.velocity

    def counting(*arguments: Any) -> Tensor:
        found["gradient" if torch.is_grad_enabled() else policy._active] += 1
        return velocity(*arguments)

    monkeypatch.setattr(policy, "velocity", counting)
    return found


def prepared(o: Optimizer) -> Update:
    return o.prepare(make_batch(AbsAdvantage), range(GROUPS), SIGMAS, Draws(7))


# -- 2n - 1 passes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro_batch", "parts"), [(24, 1), (23, 2), (12, 2), (8, 3), (5, 5), (1, 24)])
def test_a_group_of_n_micro_batches_takes_2n_minus_1_passes(
    micro_batch: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    o = make({"clip": 1e-2, "kl": 0.02}, micro_batch=micro_batch)
    found, update = counted(o.policy, monkeypatch), prepared(o)
    o.accumulation.add(update)
    each = GROUPS * len(SIGMAS)
    expected = {"policy": parts - 1, "gradient": parts, "base": parts, "ema_fast": parts}
    assert +found == +Counter({kind: count * each for kind, count in expected.items()})
    announced = (o.accumulation._passes(update, bundle) for bundle in update.bundles(update.local_members, micro_batch))
    assert +found == Counter(kind for passes in announced for kind in passes), "sharded models run what is announced"


def test_groups_that_share_a_micro_batch_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    o = make({"clip": None, "kl": 0.0}, micro_batch=2 * MEMBERS)
    found = counted(o.policy, monkeypatch)
    o.accumulation.add(prepared(o))
    assert found == Counter({"gradient": 2 * len(SIGMAS), "base": 2 * len(SIGMAS)})


def gradient_in_two_passes(o: Optimizer, update: Update) -> list[Tensor]:
    """The statistic of all members without gradient, then every micro-batch again with it, in the same order."""
    o.policy.forget_gradient()
    for bundle in update.bundles(update.local_members, o.micro_batch):
        parts = [update.gather(members) for members in bundle]
        for t in range(len(update.sigmas)):
            batches = [o.models.at(update, part, t) for part in parts]
            known = None
            if len(batches) > 1:
                with torch.no_grad():
                    known = torch.cat([o.objective.statistic(o.models.predictions(b)) for b in batches]).sum()
            for b in batches:
                result = member_loss(o.objective, o.models.predictions(b), b.members, known)
                group_means(result.loss, b.members.group_size, len(update.groups) * len(update.sigmas)).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in o.policy.parameters.values() if p.grad is not None]


def miniature(registry: Registry, autocast: Callable[[], AbstractContextManager[object]], **backbone: Any) -> Optimizer:
    """The miniature in float32 with other weights than the base's."""
    data = run_data(Path("unused"), objective={"clip": 1e-3, "kl": 0.02}, optimizer={"micro_batch": 3})
    config = RunConfig.model_validate(data | {"backbone": SD3 | backbone})
    made = registry.create("backbone", config.backbone, device=torch.device("cpu"))
    policy = Policy(made, config.objective)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return Optimizer(
        config, policy, DirectGroupPreference(config.objective, Options()), ConditioningCache(made), autocast=autocast
    )


def groups_of_seven(shape: tuple[int, ...]) -> TrainingBatch:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    weights -= weights.mean(1, keepdim=True)
    return TrainingBatch(
        prompts=(Prompt("a red circle", size=(64, 64)), Prompt("two blue squares", size=(64, 64))),
        x0=torch.randn(14, *shape, generator=generator), own=range(14), advantages=weights, signed_weights=weights,
        scored=torch.ones(2, 7, dtype=torch.bool), residual=torch.zeros(2),
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_gradient_is_that_of_two_passes_bit_for_bit(
    precision: str, checkpointing: bool, registry: Registry
) -> None:
    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()

    o = miniature(registry, autocast, gradient_checkpointing=checkpointing)
    batch = groups_of_seven(tuple(o.policy.backbone.latent_shape(64, 64)))
    update = o.prepare(batch, range(2), [0.9, 0.6], Draws(7))
    assert [len(b) for b in update.bundles(update.local_members, 3)] == [3, 3]
    o.accumulation.add(update)
    found = [p.grad.clone() for p in o.policy.parameters.values() if p.grad is not None]
    assert found
    assert any(bool(gradient.any()) for gradient in found)
    assert all(map(torch.equal, found, gradient_in_two_passes(o, update)))


# -- no pass of the fast EMA while it is the policy -------------------------------------------------------------------


@pytest.mark.parametrize("fast", [{}, {"ramp": 0.0}, {"max_decay": 0.0}, {"ramp": 1.0, "max_decay": 0.9}])
def test_the_fast_ema_is_the_policy_only_if_its_weights_are(fast: dict[str, float], make_config: Make) -> None:
    """Told from the number of updates alone, also by a policy that was loaded."""
    policy = make({"ema_fast": fast}, micro_batch=1).policy
    policy.load_state({name: torch.zeros_like(t) for name, t in policy.state().items()}, updates=0)
    assert policy.fast_is_policy
    for update in range(1, 5):
        with torch.no_grad():
            for parameter in policy.parameters.values():
                parameter += torch.randn_like(parameter)
        policy.update_averages(update)
        with policy.activate("ema_fast"):
            ours = [p.clone() for p in policy.parameters.values()]
        same = all(map(torch.equal, ours, policy.parameters.values()))
        assert policy.fast_is_policy == same == (update == 1 or 0.0 in fast.values())
        other = make({"ema_fast": fast}, micro_batch=1).policy
        other.load_state(policy.state(), updates=update)
        assert other.fast_is_policy == same


@pytest.mark.parametrize(
    "objective", [{"clip": 1e-3}, {"clip": None, "reference": "ema_fast"}, {"clip": 1e-3, "reference": "ema_fast"}]
)
@pytest.mark.parametrize("micro_batch", [3, 100])
def test_a_run_without_its_passes_is_the_same(
    objective: dict[str, Any], micro_batch: int, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; a resumed run knows after how many updates it was saved."""
    settings = {"objective": objective | {"kl": 0.02}, "optimizer": {"micro_batch": micro_batch}}
    saving, always = (make_config(**settings, run={"name": name, "iterations": 4}) for name in ("saving", "always"))
    passes = []
    for resume in (False, True):
        trainer = Trainer(saving, registry)
        found = counted(trainer.build().policy, monkeypatch)
        trainer.train(max_iterations=2, resume=resume)
        passes.append(found["ema_fast"])
    assert passes[0] == 0, "after no update and after the first one"
    assert passes[1] > 0
    monkeypatch.setattr(Policy, "fast_is_policy", property(lambda self: False))
    trainer = Trainer(always, registry)
    found = counted(trainer.build().policy, monkeypatch)
    trainer.train()
    assert found["ema_fast"] == 2 * passes[1]
    first, second = run_path(saving), run_path(always)
    for file in ("metrics.jsonl", "checkpoints/000004/weights.safetensors", "checkpoints/000004/optimizer.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_members_that_are_processed_again_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress after memory ran out in the middle of an update."""
    o = make({"clip": None, "kl": 0.0}, micro_batch=MEMBERS)
    told: list[int] = []
    o.accumulation.progress = told.append
    velocity, calls = o.policy.velocity, 0

    def tight(x: Tensor, *rest: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return velocity(x, *rest)

    monkeypatch.setattr(o.policy, "velocity", tight)
    update = prepared(o)
    o.accumulation.add(update)
    assert min(told) == -2 * MEMBERS, "two micro-batches were done"
    assert sum(told) == update.active * len(SIGMAS)

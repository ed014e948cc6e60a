"""The engine's gradients and updates against the authors' loop in each published mode: float64, 1e-10."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.training.accumulation import Accumulated, metric_means
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.types import Prompt, ScoredGroups
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig
from tests.parity import published

GROUPS, MEMBERS = 4, 6
SIGMAS = [0.9, 0.7, 0.55]
MODES: dict[str, tuple[dict[str, Any], published.Settings]] = {
    "1: guided rollouts, a frozen reference": (
        {"beta": 100.0, "kl": 0.02, "clip": 1e-2},
        published.Settings(beta=100.0, kl=0.02, clip=1e-2),
    ),
    "2a: a frozen, guided reference": (
        {"beta": 100.0, "kl": 1e-3, "kl_cfg": 4.5, "clip": 1e-4},
        published.Settings(beta=100.0, kl=1e-3, kl_cfg=4.5, clip=1e-4),
    ),
    "2b: a dynamic reference, the KL term against the base": (
        {"reference": "ema_fast", "beta": 2000.0, "kl": 0.02, "clip": 1e-5},
        published.Settings(beta=2000.0, kl=0.02, clip=1e-5, dynamic=True),
    ),
    "2b with a guided base": (
        {"reference": "ema_fast", "beta": 2000.0, "kl": 0.02, "kl_cfg": 4.5, "clip": 1e-5},
        published.Settings(beta=2000.0, kl=0.02, kl_cfg=4.5, clip=1e-5, dynamic=True),
    ),
    "1 with a clipped KL term": (
        {"beta": 100.0, "kl": 0.02, "clip": 1e-2, "clip_kl": True},
        published.Settings(beta=100.0, kl=0.02, clip=1e-2, clip_kl=True),
    ),
    "1 without a clip": ({"beta": 100.0, "kl": 0.02, "clip": None}, published.Settings(beta=100.0, kl=0.02)),
}


def optimizer(
    objective: dict[str, Any], *, micro_batch: int, std: str = "group", clamp: float = 5.0, **adamw: float
) -> Optimizer:
    """On a float64 toy whose policy, fast EMA and base differ."""
    data = run_data(
        Path("unused"),
        objective=objective,
        optimizer={"micro_batch": micro_batch} | adamw,
        advantages={"std": std, "clamp": clamp},
    )
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "options": {"double": True}}
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    policy = Policy(backbone, config.objective)
    generator = torch.Generator().manual_seed(1)
    for weights_of in ("ema_fast", "policy"):
        with policy.activate(weights_of), torch.no_grad():  # type: ignore[arg-type]
            for parameter in policy.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    policy.load_state({}, updates=100)  # after which the fast EMA is not the policy
    dgpo = DirectGroupPreference(config.objective, Options())
    return Optimizer(config, policy, dgpo, ConditioningCache(backbone), autocast=nullcontext)


def scored_groups(texts: list[str], *, equal: int | None = None) -> ScoredGroups:
    """`equal`: a group whose rewards are all the same number, one whose mean is exact."""
    generator = torch.Generator().manual_seed(2)
    rewards = torch.rand(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
    if equal is not None:
        rewards[equal] = 0.5
    return ScoredGroups(
        prompts=tuple(map(Prompt, texts)),
        x0=torch.randn(GROUPS * MEMBERS, *SHAPE, generator=generator, dtype=torch.float64),
        own=range(GROUPS * MEMBERS),
        rewards=rewards,
        summed=rewards,
        scored=torch.ones(GROUPS, MEMBERS, dtype=torch.bool),
        per_reward={"brightness": rewards},
        diversity=torch.zeros(GROUPS),
    )


def added(o: Optimizer, groups: ScoredGroups, draws: Draws) -> Accumulated:
    batch = compute_advantages(groups, o.config.advantages, AbsAdvantage(Options()))
    return o.accumulation.add(o.prepare(batch, range(GROUPS), SIGMAS, draws))


def engine_gradient(o: Optimizer, groups: ScoredGroups, draws: Draws) -> dict[str, Tensor]:
    added(o, groups, draws)
    return {name: p.grad.clone() for name, p in o.policy.parameters.items() if p.grad is not None}


def published_gradient(
    o: Optimizer, settings: published.Settings, groups: ScoredGroups, draws: Draws, *, global_std: bool, joined: bool
) -> dict[str, Tensor]:
    """Of the authors' loss; `joined`: samples of one prompt count as one group, even if it was drawn twice."""
    backbone = o.policy.backbone

    def model(
        weights_of: Literal["policy", "ema_fast", "base"], x: Tensor, sigma: float, text: str, guidance: float
    ) -> Tensor:
        time = torch.tensor([sigma], dtype=torch.float64)
        with o.policy.activate(weights_of):
            velocity = backbone.velocity(x[None], time, backbone.encode(prompts_of([text])))[0]
            if guidance == 1:
                return velocity
            free = backbone.velocity(x[None], time, backbone.encode(prompts_of([""])))[0]
        return free + guidance * (velocity - free)

    texts = [p.text for p in groups.prompts for _ in range(MEMBERS)]
    places = [g for g in range(GROUPS) for _ in range(MEMBERS)]
    ids = texts if joined else places
    advantage = published.advantages(ids, groups.rewards.flatten().tolist(), global_std=global_std)
    total = torch.zeros((), dtype=torch.float64)
    for t, sigma in enumerate(SIGMAS):
        keys = [draws.at("noise", t).at(g) for g in range(GROUPS)]
        noise = normal_rows(keys, SHAPE, "cpu").double().repeat_interleave(MEMBERS, 0)
        total = total + published.loss(
            model, settings, ids, texts, groups.x0, noise, sigma, advantage.tolist(), MEMBERS
        ) / len(SIGMAS)
    gradients = torch.autograd.grad(total, list(o.policy.parameters.values()))
    return dict(zip(o.policy.parameters, gradients, strict=True))


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference over the largest number."""
    assert found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 1e-4, "the gradient to compare with must not vanish"
    return max(float((found[name] - gradient).abs().max()) for name, gradient in wanted.items()) / scale


@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("micro_batch", [4, 24])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_authors_code(mode: str, micro_batch: int, std: str) -> None:
    objective, settings = MODES[mode]
    o = optimizer(objective, micro_batch=micro_batch, std=std)
    groups, draws = scored_groups(["a", "b", "c", "d"]), Draws(7)
    wanted = published_gradient(o, settings, groups, draws, global_std=std == "batch", joined=True)
    assert distance(engine_gradient(o, groups, draws), wanted) <= 1e-10
    fraction = metric_means([added(o, groups, draws)], o.processes).get("clip_fraction")
    if settings.clip is not None:
        assert fraction is not None
        assert 0.1 < fraction < 0.9, "the clip must matter here"


@pytest.mark.parametrize("std", ["group", "batch"])
def test_advantages_are_clamped_before_both_uses(std: str) -> None:
    """In S_g and beside dsm, after the division by the std; at 1 here, for groups this small do not reach the 5."""
    objective, settings = MODES["1: guided rollouts, a frozen reference"]
    o = optimizer(objective, micro_batch=24, std=std, clamp=1.0)
    groups, draws = scored_groups(["a", "b", "c", "d"]), Draws(7)
    found = engine_gradient(o, groups, draws)
    clamped, free = (
        published_gradient(o, replace(settings, largest=largest), groups, draws, global_std=std == "batch", joined=True)
        for largest in (1.0, 5.0)
    )
    assert distance(found, clamped) <= 1e-10
    assert distance(found, free) > 1e-3


@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("mode", ["1: guided rollouts, a frozen reference", "1 with a clipped KL term"])
def test_a_group_of_equal_rewards_still_feels_the_kl_term(mode: str, std: str) -> None:
    """The KL term is the mean over all samples, and a member with an advantage of 0 is clipped as a worse one."""
    objective, settings = MODES[mode]
    o = optimizer(objective, micro_batch=24, std=std)
    groups, draws = scored_groups(["a", "b", "c", "d"], equal=1), Draws(7)
    wanted = published_gradient(o, settings, groups, draws, global_std=std == "batch", joined=True)
    assert distance(engine_gradient(o, groups, draws), wanted) <= 1e-10


@pytest.mark.parametrize("mode", ["1: guided rollouts, a frozen reference", "2b with a guided base"])
def test_updates_are_those_of_the_authors_loop(mode: str) -> None:
    """Gradient norm, AdamW, fast EMA, in this order; the gradient is taken at the engine's weights."""
    objective, settings = MODES[mode]
    o = optimizer(objective, micro_batch=4, learning_rate=3e-3, weight_decay=0.1, max_grad_norm=1e-3)
    assert (o.section.betas, o.section.epsilon) == ([0.9, 0.999], 1e-8)

    def flat(tensors: Iterable[Tensor]) -> np.ndarray:
        return torch.cat([t.detach().flatten() for t in tensors]).numpy().copy()

    def fast() -> np.ndarray:
        return flat(o.policy.state()[f"ema_fast/{name}"] for name in o.policy.parameters)

    adamw = published.AdamW(flat(o.policy.parameters.values()), 3e-3, weight_decay=0.1, largest_norm=1e-3)
    average = published.Averages(fast())
    groups = scored_groups(["a", "b", "c", "d"])
    for update in range(4):
        draws = Draws(update)
        gradient = published_gradient(o, settings, groups, draws, global_std=False, joined=True)
        wanted = adamw.update(flat(gradient[name] for name in o.policy.parameters))
        average.update(wanted)
        batch = compute_advantages(groups, o.config.advantages, AbsAdvantage(Options()))
        (result,) = o.step(batch, torch.tensor(SIGMAS, dtype=torch.float64), draws)
        assert result.grad_norm > 2e-3, "the norm must be clipped here"
        assert np.abs(flat(o.policy.parameters.values()) - wanted).max() <= 1e-10, update
        assert np.abs(fast() - average.fast).max() <= 1e-10, update
    assert o.updates == average.updates == 4


@pytest.mark.parametrize("std", ["group", "batch"])
def test_a_prompt_that_stands_twice_is_two_groups(std: str) -> None:
    """On purpose: the code joins them, and then the partition function no longer cancels within a group."""
    objective, settings = MODES["1: guided rollouts, a frozen reference"]
    o = optimizer(objective, micro_batch=24, std=std)
    groups, draws = scored_groups(["a", "b", "a", "d"]), Draws(7)
    found = engine_gradient(o, groups, draws)
    apart = published_gradient(o, settings, groups, draws, global_std=std == "batch", joined=False)
    joined = published_gradient(o, settings, groups, draws, global_std=std == "batch", joined=True)
    assert distance(found, apart) <= 1e-10
    assert distance(found, joined) > 1e-3
    texts = [p.text for p in groups.prompts for _ in range(MEMBERS)]
    theirs = published.advantages(texts, groups.rewards.flatten().tolist(), global_std=std == "batch")
    sums = theirs.reshape(GROUPS, MEMBERS).sum(1)
    assert abs(sums[0]) > 0.05
    assert abs(sums[0] + sums[2]) < 1e-9
    ours = compute_advantages(groups, o.config.advantages, AbsAdvantage(Options()))
    assert float(ours.residual.max()) < 1e-9

"""The gradient of the engine against brute-force float64 autograd of the paper's loss."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.builtin.weightings import AbsAdvantage, BestVersusWorst, Uniform
from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.groups import advantages, signed_weights
from dgpo_core.training.accumulation import Accumulated, metric_means
from dgpo_core.training.microbatches import Update
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.types import Prompt, TrainingBatch
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig

GROUPS, MEMBERS = 3, 24
SIGMAS = [0.9, 0.55]
MODES = {
    "1: frozen": {"reference": "frozen", "beta": 100.0, "clip": 1e-2},
    "2a: frozen with guidance": {"reference": "frozen", "kl_cfg": 4.5, "beta": 100.0, "clip": 1e-3},
    "2b: dynamic": {"reference": "ema_fast", "beta": 3000.0, "clip": 1e-3},
    "2b: dynamic, guided base": {"reference": "ema_fast", "kl_cfg": 4.5, "beta": 3000.0, "clip": 1e-3},
    "no clip": {"reference": "frozen", "beta": 50.0, "clip": None},
}
WEIGHTINGS = {"abs-advantage": AbsAdvantage, "uniform": Uniform, "best-vs-worst": BestVersusWorst}


def make(objective: dict[str, object], *, micro_batch: int | None, train: str = "lora") -> Optimizer:
    """An optimizer on a float64 toy whose policy, old and base weights all differ."""
    data = run_data(Path("unused"), objective=objective, optimizer={"micro_batch": micro_batch})
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "train": train, "options": {"double": True}}
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    policy = Policy(backbone, config.objective)
    generator = torch.Generator().manual_seed(1)
    for model in ("ema_fast", "policy"):
        with policy.activate(model), torch.no_grad():
            for parameter in policy.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    policy.load_state({}, updates=100)  # after which the fast EMA is not the policy
    dgpo = DirectGroupPreference(config.objective, Options())
    return Optimizer(config, policy, dgpo, ConditioningCache(backbone), autocast=nullcontext)


def make_batch(
    weighting: type,
    *,
    ties: bool = False,
    missing: bool = False,
    sizes: tuple[tuple[int, int], ...] = ((8, 8),) * GROUPS,
) -> TrainingBatch:
    generator = torch.Generator().manual_seed(2)
    rewards = torch.rand(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
    if ties:
        rewards[1] = 0.25
    scored = torch.ones(GROUPS, MEMBERS, dtype=torch.bool)
    if missing:
        scored[0, :5] = False
        scored[2, 1:] = False
    config = RunConfig.model_validate(run_data(Path("unused")))
    a = advantages(rewards, scored, config.advantages)
    c = signed_weights(a, rewards, scored, weighting(Options()))
    return TrainingBatch(
        prompts=tuple(Prompt(f"p{i}", size=size) for i, size in enumerate(sizes)),
        x0=tuple(
            torch.randn(SHAPE[0], height // 2, width // 2, generator=generator, dtype=torch.float64)
            for height, width in sizes
            for _ in range(MEMBERS)
        ),
        own=range(GROUPS * MEMBERS),
        advantages=a,
        signed_weights=c,
        scored=scored,
        residual=c.sum(1).abs(),
    )


def brute_force(o: Optimizer, batch: TrainingBatch, draws: Draws, *, clip: bool, kl: bool) -> dict[str, Tensor]:
    """Gradient of mean over groups and timesteps of L_g / beta + kl |v - v_base|^2, member by member, from the paper.

    L_g = -log sigmoid(-S_g), S_g = beta / G * sum c_i (dsm_i - dsm_ref_i), differentiated by autograd as it stands.
    """
    section, policy, backbone = o.config.objective, o.policy, o.policy.backbone
    total = torch.zeros((), dtype=torch.float64)
    for t, sigma in enumerate(SIGMAS):
        for g in range(GROUPS):
            use = batch.scored[g].nonzero().flatten().tolist()
            if len(use) < 2:
                continue
            noise = normal_rows([draws.at("noise", t).at(g)], tuple(batch.x0[g * MEMBERS].shape), "cpu")[0].double()
            s = torch.zeros((), dtype=torch.float64)
            kls = torch.zeros((), dtype=torch.float64)
            for i in use:
                x0 = batch.x0[g * MEMBERS + i]
                x = ((1 - sigma) * x0 + sigma * noise)[None]
                time = torch.tensor([sigma], dtype=torch.float64)
                c, empty = backbone.encode(prompts_of([batch.prompts[g].text])), backbone.encode(prompts_of([""]))
                with torch.no_grad():
                    with policy.activate("ema_fast"):
                        old = backbone.velocity(x, time, c)
                    with policy.activate("base"):
                        base = backbone.velocity(x, time, c)
                        if section.kl_cfg != 1:
                            free = backbone.velocity(x, time, empty)
                            base = free + section.kl_cfg * (base - free)
                    ref = old if section.reference == "ema_fast" else base
                v = backbone.velocity(x, time, c)
                target = (noise - x0)[None]
                dsm, dsm_ref, dsm_old = (((p - target) ** 2).mean() for p in (v, ref, old))
                if clip and section.clip is not None:
                    ratio = math.exp(float((dsm_old - dsm).detach()))
                    positive = float(batch.advantages[g, i]) > 0
                    if (positive and ratio > 1 + section.clip) or (not positive and ratio < 1 - section.clip):
                        dsm = dsm.detach()
                s = s + section.beta / len(use) * batch.signed_weights[g, i] * (dsm - dsm_ref)
                kls = kls + ((v - base) ** 2).mean() / len(use)
            loss = -torch.nn.functional.logsigmoid(-s) / section.beta
            total = total + (loss + (section.kl * kls if kl else 0)) / (GROUPS * len(SIGMAS))
    names = list(policy.parameters)
    gradients = torch.autograd.grad(total, list(policy.parameters.values()))
    return dict(zip(names, gradients, strict=True))


def added(o: Optimizer, batch: TrainingBatch, draws: Draws) -> Accumulated:
    return o.accumulation.add(o.prepare(batch, range(GROUPS), SIGMAS, draws))


def means(gradient: Accumulated) -> dict[str, float | None]:
    return metric_means([gradient], Processes())


def engine_gradient(o: Optimizer, batch: TrainingBatch, draws: Draws) -> dict[str, Tensor]:
    added(o, batch, draws)
    return {name: p.grad.clone() for name, p in o.policy.parameters.items() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 1e-6, "the gradient to compare with must not vanish"
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-10 * max(scale, 1.0), name


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("micro_batch", [1, 5, 24, 30, 72, None])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_papers(mode: str, micro_batch: int | None, weighting: str) -> None:
    o = make({**MODES[mode], "kl": 0.02}, micro_batch=micro_batch)
    batch, draws = make_batch(WEIGHTINGS[weighting]), Draws(7)
    assert_same(engine_gradient(o, batch, draws), brute_force(o, batch, draws, clip=True, kl=True))


@pytest.mark.parametrize("micro_batch", [1, 7, 24, 72])
@pytest.mark.parametrize("sizes", [((8, 8), (16, 8), (16, 8)), ((8, 16), (8, 8), (8, 16))])
def test_gradient_of_groups_of_several_sizes(sizes: tuple[tuple[int, int], ...], micro_batch: int) -> None:
    o = make({**MODES["2a: frozen with guidance"], "kl": 0.02}, micro_batch=micro_batch)
    batch, draws = make_batch(AbsAdvantage, missing=True, sizes=sizes), Draws(7)
    assert_same(engine_gradient(o, batch, draws), brute_force(o, batch, draws, clip=True, kl=True))


@pytest.mark.parametrize("micro_batch", [5, 24])
def test_full_fine_tuning_keeps_its_own_base(micro_batch: int) -> None:
    o = make({**MODES["1: frozen"], "kl": 0.02}, micro_batch=micro_batch, train="full")
    batch, draws = make_batch(AbsAdvantage), Draws(7)
    assert_same(engine_gradient(o, batch, draws), brute_force(o, batch, draws, clip=True, kl=True))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("micro_batch", [5, 72])
def test_skipping_zero_weights_is_exact(micro_batch: int, weighting: str) -> None:
    """A group of equal rewards, and members of weight 0, cost nothing without a KL term and change nothing."""
    o = make({**MODES["no clip"], "kl": 0.0}, micro_batch=micro_batch)
    batch, draws = make_batch(WEIGHTINGS[weighting], ties=True), Draws(7)
    active = int((batch.signed_weights != 0).sum())
    assert active < GROUPS * MEMBERS
    assert_same(engine_gradient(o, batch, draws), brute_force(o, batch, draws, clip=True, kl=False))
    gradient = added(o, batch, draws)
    assert (gradient.members, gradient.skipped) == (active * 2, (GROUPS * MEMBERS - active) * 2)


def test_missing_members_leave_their_group() -> None:
    """A group with one scored member is left out; a group with some missing is averaged over the others."""
    o = make({**MODES["1: frozen"], "kl": 0.02}, micro_batch=7)
    batch, draws = make_batch(AbsAdvantage, missing=True), Draws(7)
    assert_same(engine_gradient(o, batch, draws), brute_force(o, batch, draws, clip=True, kl=True))


def test_clip_acts_and_clip_kl_silences_the_kl_of_clipped_members() -> None:
    batch, draws = make_batch(AbsAdvantage), Draws(7)
    gradients = {}
    for clip_kl in (False, True):
        o = make({**MODES["1: frozen"], "kl": 0.02, "clip_kl": clip_kl}, micro_batch=24)
        gradients[clip_kl] = engine_gradient(o, batch, draws)
        fraction = means(added(o, batch, draws))["clip_fraction"]
        assert fraction is not None
        assert 0 < fraction < 1
    assert any(not torch.equal(gradients[True][n], gradients[False][n]) for n in gradients[True])


def test_without_shared_noise_members_have_their_own(tmp_path: Path) -> None:
    def errors(shared: bool) -> float:
        o = make({**MODES["no clip"], "kl": 0.02}, micro_batch=24)
        section = o.config.timesteps.model_copy(update={"shared_noise": shared})
        o.config = o.config.model_copy(update={"timesteps": section})
        value = means(added(o, make_batch(AbsAdvantage), Draws(7)))["dsm"]
        assert value is not None
        return value

    assert errors(True) != errors(False)


def test_metrics_are_means_over_members() -> None:
    o = make({**MODES["1: frozen"], "kl": 0.02}, micro_batch=5)
    batch, draws = make_batch(AbsAdvantage), Draws(7)
    averages = means(added(o, batch, draws))
    total = 0.0
    for t, sigma in enumerate(SIGMAS):
        for g in range(GROUPS):
            noise = normal_rows([draws.at("noise", t).at(g)], SHAPE, "cpu").double()
            x = (1 - sigma) * torch.stack(list(batch.x0)).view(GROUPS, MEMBERS, *SHAPE)[g] + sigma * noise
            c = o.policy.backbone.encode(prompts_of([batch.prompts[g].text])).expand(MEMBERS)
            with torch.no_grad():
                v = o.policy.backbone.velocity(x, torch.full((MEMBERS,), sigma, dtype=torch.float64), c)
            target = noise - torch.stack(list(batch.x0)).view(GROUPS, MEMBERS, *SHAPE)[g]
            total += float((v - target).square().mean()) / (GROUPS * len(SIGMAS))
    assert averages["dsm"] == pytest.approx(total, rel=1e-12)
    assert 0 <= averages["sigmoid"] <= 1  # type: ignore[operator]
    assert metric_means([], Processes()) == {}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_under_autocast_every_model_is_itself(train: str) -> None:
    """Autocast remembers its casts by the parameter; the base must not be computed with the fast EMA's."""
    data = run_data(Path("unused"), objective={**MODES["1: frozen"], "kl": 0.02})
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "train": train}
    config = RunConfig.model_validate(data)
    policy = Policy(ToyBackbone(config.backbone, ToyOptions(), device=torch.device("cpu")), config.objective)
    for scale, model in ((0.5, "ema_fast"), (0.7, "policy")):
        with policy.activate(model), torch.no_grad():  # type: ignore[arg-type]
            for parameter in policy.parameters.values():
                parameter += scale
    policy.load_state({}, updates=100)  # after which the fast EMA is not the policy

    def half() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    dgpo = DirectGroupPreference(config.objective, Options())
    o = Optimizer(config, policy, dgpo, ConditioningCache(policy.backbone), autocast=half)
    batch = make_batch(AbsAdvantage)
    batch = dataclasses.replace(batch, x0=[x0.float() for x0 in batch.x0])
    own = [list(range(MEMBERS))] * GROUPS
    update = Update(
        batch, range(GROUPS), own, [False] * GROUPS, [None] * GROUPS, [0.7], Draws(7), o.conditioning.rows, None,
        shared_noise=True, active=GROUPS * MEMBERS,
    )  # fmt: skip
    b = o.models.at(update, update.gather([(0, 0), (1, 3)]), 0)
    for model, found in (("base", b.others["reference"]), ("ema_fast", b.others["old"])):
        with policy.activate(model), half(), torch.no_grad():  # type: ignore[arg-type]
            wanted = policy.velocity(b.x_sigma, b.sigma, b.members.conditioning)
        assert torch.equal(found, wanted), model  # type: ignore[arg-type]
    assert not torch.equal(b.others["reference"], b.others["old"])  # type: ignore[arg-type]

"""Gradients of the engine with each objective against float64 autograd of the papers' equations, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.groups import advantages, signed_weights
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.accumulation import Accumulated, metric_means
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.types import Path as SamplerPath
from dgpo_core.types import Prompt, TrainingBatch
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE, run_data
from dgpo_schemas.run import RunConfig

GROUPS, MEMBERS = 3, 6
PROMPTS = tuple(Prompt(f"p{i}") for i in range(GROUPS))
DRAWS = Draws(7)
MICRO_BATCHES = [1, 4, 6, 13, None]

each_micro_batch = pytest.mark.parametrize("micro_batch", MICRO_BATCHES)


@dataclass
class Setting:
    """An optimizer on a float64 toy whose policy, old and base weights all differ, with its inputs."""

    optimizer: Optimizer
    batch: TrainingBatch
    sigmas: list[float]
    rollout_sampler: RolloutSampler
    added: Accumulated | None = None

    @property
    def averages(self) -> dict[str, float | None]:
        """Return metrics of the last gradient."""
        assert self.added is not None
        return metric_means([self.added], self.optimizer.processes)

    @property
    def policy(self) -> Policy:
        return self.optimizer.policy

    def gradient(self) -> dict[str, Tensor]:
        """Return the engine's gradient."""
        o = self.optimizer
        self.added = o.accumulation.add(o.prepare(self.batch, range(GROUPS), self.sigmas, DRAWS))
        return {name: p.grad.clone() for name, p in self.policy.parameters.items() if p.grad is not None}

    def velocity(self, model: str, x: Tensor, sigma: float, group: int, guidance: float = 1.0) -> Tensor:
        """Return the backbone's velocity of one state, with gradient for the policy."""
        backbone, time = self.policy.backbone, torch.tensor([sigma], dtype=torch.float64)
        with self.policy.activate(model), torch.set_grad_enabled(model == "policy"):  # type: ignore[arg-type]
            v = backbone.velocity(x[None], time, backbone.encode(prompts_of([PROMPTS[group].text])))
            if guidance != 1:
                free = backbone.velocity(x[None], time, backbone.encode(prompts_of([""])))
                v = free + guidance * (v - free)
        return v[0]

    def noised(self) -> Iterator[tuple[int, int, int, float, Tensor, Tensor]]:
        """Yield (t, g, i, sigma, x_sigma, target) of every scored sample at every time; a group shares its noise."""
        for t, sigma in enumerate(self.sigmas):
            for g in range(GROUPS):
                eps = normal_rows([DRAWS.at("noise", t).at(g)], SHAPE, "cpu")[0].double()
                for i in self.batch.scored[g].nonzero().flatten().tolist():
                    x0 = self.batch.x0[g * MEMBERS + i]
                    yield t, g, i, sigma, (1 - sigma) * x0 + sigma * eps, eps - x0

    def differentiate(self, member_losses: list[tuple[int, Tensor]]) -> dict[str, Tensor]:
        """Return the gradient of the mean over groups and times of the mean over the scored members of a group."""
        size = self.batch.scored.sum(1).tolist()
        total = torch.stack([loss / size[g] for g, loss in member_losses]).sum() / (GROUPS * len(self.sigmas))
        names = list(self.policy.parameters)
        found = torch.autograd.grad(total, list(self.policy.parameters.values()))
        return dict(zip(names, found, strict=True))


Make = Callable[..., Setting]


@pytest.fixture
def make(registry: Registry) -> Make:
    def build(
        objective: dict[str, Any],
        *,
        micro_batch: int | None = None,
        rollout: dict[str, Any] | None = None,
        weighting: str = "abs-advantage",
        missing: bool = False,
        move: float = 0.05,
    ) -> Setting:
        data = run_data(
            Path("unused"), objective=objective, optimizer={"micro_batch": micro_batch}, weighting=weighting,
            rollout={"steps": 5, "sampler": "flow-sde", "groups": GROUPS, "group_size": MEMBERS} | (rollout or {}),
        )  # fmt: skip
        data["backbone"] = {"use": "toy", "checkpoint": "toy", "options": {"double": True}}
        config = RunConfig.model_validate(data)
        backbone = registry.create("backbone", config.backbone, device=torch.device("cpu"))
        policy = Policy(backbone, config.objective)
        generator = torch.Generator().manual_seed(1)
        shake(policy, "ema_fast", 0.05, generator)
        shake(policy, "policy", 0.05, generator)
        # The EMA keeps the weights that generate the path.
        state = policy.state()
        remembered = {name: state[name.replace("ema/", "policy/")] for name in state if name.startswith("ema/")}
        policy.load_state(remembered, updates=100)
        sampler = registry.create("sampler", config.rollout.sampler)
        rollout_sampler = RolloutSampler(
            policy, sampler, ConditioningCache(backbone), resolution=(8, 8), steps=config.rollout.steps,
            shift=config.rollout.shift, guidance=config.rollout.guidance, micro_batch=5, autocast=nullcontext,
            guidance_interval=config.rollout.guidance_interval,
        )  # fmt: skip
        drawn = list(
            rollout_sampler.sample_groups(PROMPTS, MEMBERS, Draws(3), "policy", keep_path=not sampler.deterministic)
        )
        shake(policy, "policy", move, generator)
        made = registry.create("objective", config.objective)
        scored = torch.ones(GROUPS, MEMBERS, dtype=torch.bool)
        if missing:
            scored[0, :2] = False
            scored[2, 1:] = False
        rewards = torch.rand(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
        a = advantages(rewards, scored, config.advantages)
        c = signed_weights(a, rewards, scored, registry.create("weighting", config.weighting))
        batch = TrainingBatch(
            prompts=PROMPTS,
            x0=torch.cat([r.x0 for r in drawn]),
            own=range(GROUPS * MEMBERS),
            advantages=a,
            signed_weights=c,
            scored=scored,
            residual=c.sum(1).abs(),
            paths=tuple(r.path for r in drawn if r.path is not None),
        )
        optimizer = Optimizer(config, policy, made, rollout_sampler.conditioning, autocast=nullcontext, sampler=sampler)
        return Setting(optimizer, batch, [0.8, 0.4], rollout_sampler)

    return build


def shake(policy: Policy, model: str, size: float, generator: torch.Generator) -> None:
    with policy.activate(model), torch.no_grad():  # type: ignore[arg-type]
        for parameter in policy.parameters.values():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 1e-6, "the gradient to compare with must not vanish"
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-10 * max(scale, 1.0), name


# -- Flow-GRPO ------------------------------------------------------------------------------------------------------

SETTINGS = {
    "sde": {},
    "cps": {"sampler": {"use": "flow-cps", "options": {"eta": 0.6}}},
    "a loud window": {"sampler": {"use": "flow-sde", "options": {"noise": 1.1, "random_from": 0.9}}},
    "guided": {"guidance": 3.0},
    "guided at low noise": {"guidance": 3.0, "guidance_interval": [0.3, 0.7]},
    "guided at high noise": {"guidance": 3.0, "guidance_interval": [0.7, 0.9]},
}


def gaussian(x: Tensor, mean: Tensor, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).mean()


def step_of(sampler: dict[str, Any], x: Tensor, v: Tensor, sigma: float, after: float) -> tuple[Tensor, float]:
    """Return mean and std of a random step, from the papers."""
    options = sampler.get("options", {})
    if sampler["use"] == "flow-cps":
        angle = options["eta"] * math.pi / 2
        mean = (1 - after) * (x - sigma * v) + after * math.cos(angle) * (x + (1 - sigma) * v)
        return mean, after * math.sin(angle)
    dt = after - sigma
    s = options.get("noise", 0.7) * math.sqrt(sigma / (1 - (after if sigma == 1 else sigma)))
    mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, s * math.sqrt(-dt)


def drawn_mean(
    s: Setting, sampler: dict[str, Any], path: SamplerPath, k: int, row: int, group: int, guidance: float
) -> Tensor:
    """Return the mean of a step under the weights that generated the path, which are kept as the EMA."""
    x, (sigma, after) = path.states[k, row], path.sigmas[k : k + 2].tolist()
    return step_of(sampler, x, s.velocity("ema", x, sigma, group, guidance), sigma, after)[0]


def flow_grpo(
    s: Setting, clip: float, *, distance: bool = False, ratio_norm: bool = False, by_noise: bool = False
) -> dict[str, Tensor]:
    """Return Flow-GRPO's loss, step by step and sample by sample, from the path and the papers' mean and std."""
    config, paths = s.optimizer.config, s.batch.paths
    kl, interval = config.objective.kl, config.rollout.guidance_interval or [0, 1]
    sampler = {"use": "flow-sde"} | config.rollout.sampler.model_dump()
    schedule = paths[0].sigmas.tolist()
    losses = []
    for sigma in s.sigmas:
        k = schedule.index(sigma)
        guidance = config.rollout.guidance if interval[0] <= sigma <= interval[1] else 1.0
        for g in range(GROUPS):
            for i in s.batch.scored[g].nonzero().flatten().tolist():
                if int(s.batch.scored[g].sum()) < 2:
                    continue
                flat = g * MEMBERS + i
                path, row = paths[flat // 5], flat % 5  # the micro-batch of the rollout sampler
                x, x_next = path.states[k, row], path.states[k + 1, row]
                v = s.velocity("policy", x, sigma, g, guidance)
                mean, std = step_of(sampler, x, v, sigma, schedule[k + 1])
                assert path.log_probs is not None
                if distance:
                    before = drawn_mean(s, sampler, path, k, row, g, guidance)
                    ratio = (((x_next - before) ** 2).mean() - ((x_next - mean) ** 2).mean()).exp()
                elif ratio_norm:  # mean (z (mean - mean_old)), z the noise that the sampler drew
                    before = drawn_mean(s, sampler, path, k, row, g, guidance)
                    ratio = ((x_next - before) / std * (mean - before)).mean().exp()
                else:
                    ratio = (gaussian(x_next, mean, std) - path.log_probs[k, row]).exp()
                a = s.batch.advantages[g, i]
                loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
                if ratio_norm:
                    loss = loss / (sigma - schedule[k + 1])
                if by_noise:
                    point, after = torch.zeros(1, 1), [*schedule[1:]]
                    stds = [step_of(sampler, point, point, *pair)[1] for pair in zip(schedule, after, strict=False)]
                    loss = loss * std / (sum(stds) / sum(one > 0 for one in stds))
                reference = s.velocity("base", x, sigma, g, guidance)
                mean_ref, _ = step_of(sampler, x, reference, sigma, schedule[k + 1])
                other = torch.distributions.Normal(mean_ref, std)
                divergence = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), other).mean()
                losses.append((g, loss + kl * divergence))
    return s.differentiate(losses)


@pytest.mark.parametrize("setting", SETTINGS)
@each_micro_batch
def test_flow_grpo(make: Make, micro_batch: int | None, setting: str) -> None:
    clip = 0.02
    s = make({"use": "flow-grpo", "options": {"clip": clip}, "kl": 0.03}, micro_batch=micro_batch,
             rollout=SETTINGS[setting])  # fmt: skip
    schedule = s.batch.paths[0].sigmas.tolist()
    s.sigmas = [schedule[3], schedule[1]]
    wanted = flow_grpo(s, clip)
    assert_same(s.gradient(), wanted)
    fraction = s.averages["clip_fraction"]
    assert fraction is not None
    assert 0 < fraction < 1


def test_flow_grpo_with_distances(make: Make) -> None:
    """-(x' - mean)^2 replaces the log-density, as in the code of Flow-CPS."""
    s = make(
        {"use": "flow-grpo", "options": {"clip": 1e-3, "log_prob": "distance"}, "kl": 0.03}, rollout=SETTINGS["cps"]
    )
    s.sigmas = s.batch.paths[0].sigmas[1:3].tolist()
    found, wanted = s.gradient(), flow_grpo(s, 1e-3, distance=True)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-4)  # the rollout's times are float32


@pytest.mark.parametrize("setting", ["sde", "cps", "guided"])
@each_micro_batch
def test_flow_grpo_with_guard(make: Make, micro_batch: int | None, setting: str) -> None:
    clip = 0.002
    s = make({"use": "flow-grpo", "options": {"clip": clip, "ratio_norm": True}, "kl": 0.03}, micro_batch=micro_batch,
             rollout=SETTINGS[setting])  # fmt: skip
    s.sigmas = s.batch.paths[0].sigmas[1:4].tolist()
    found, wanted = s.gradient(), flow_grpo(s, clip, ratio_norm=True)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)  # the rollout's times are float32
    fraction = s.averages["clip_fraction"]
    assert fraction is not None
    assert 0 < fraction < 1


@pytest.mark.parametrize("setting", ["sde", "cps"])
@each_micro_batch
def test_flow_grpo_with_steps_weighted_by_noise(make: Make, micro_batch: int | None, setting: str) -> None:
    s = make({"use": "flow-grpo", "options": {"clip": 0.02, "step_weight": "noise"}, "kl": 0.03},
             micro_batch=micro_batch, rollout=SETTINGS[setting])  # fmt: skip
    s.sigmas = s.batch.paths[0].sigmas[1:4].tolist()
    assert_same(s.gradient(), flow_grpo(s, 0.02, by_noise=True))


def test_flow_grpo_at_sigma_one(make: Make) -> None:
    s = make({"use": "flow-grpo", "kl": 0.0}, missing=True)
    s.sigmas = [1.0]
    assert_same(s.gradient(), flow_grpo(s, 1e-4))


def test_flow_grpo_starts_at_ratio_one(make: Make) -> None:
    """Before the first update, the policy generated the path, so the gradient is that of REINFORCE."""
    s = make({"use": "flow-grpo", "kl": 0.0}, move=0.0, micro_batch=4)
    s.sigmas = s.batch.paths[0].sigmas[1:4].tolist()
    found = s.gradient()
    averages = s.averages
    assert averages["ratio_distance"] == pytest.approx(0.0, abs=1e-6)
    assert averages["clip_fraction"] == 0.0
    losses = []
    schedule = s.batch.paths[0].sigmas.tolist()
    for sigma in s.sigmas:
        k = schedule.index(sigma)
        for flat in range(GROUPS * MEMBERS):
            g, i = divmod(flat, MEMBERS)
            x, x_next = (s.batch.paths[flat // 5].states[n, flat % 5] for n in (k, k + 1))
            v = s.velocity("policy", x, sigma, g)
            mean, std = step_of({"use": "flow-sde"}, x, v, sigma, schedule[k + 1])
            losses.append((g, -s.batch.advantages[g, i] * gaussian(x_next, mean, std)))
    wanted = s.differentiate(losses)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)  # the rollout's times are float32


def test_flow_grpo_skips_members_without_advantage(make: Make) -> None:
    s = make({"use": "flow-grpo", "kl": 0.0})
    s.batch.signed_weights[1] = 0.0
    s.batch.advantages[1] = 0.0
    s.sigmas = s.batch.paths[0].sigmas[1:3].tolist()
    assert_same(s.gradient(), flow_grpo(s, 1e-4))
    assert s.added is not None
    assert (s.added.members, s.added.skipped) == (2 * MEMBERS * 2, MEMBERS * 2)


# -- Diffusion-DPO --------------------------------------------------------------------------------------------------


def diffusion_dpo(s: Setting) -> dict[str, Tensor]:
    """Return -log sigmoid of the margin of the pair."""
    beta, kl = s.optimizer.config.objective.beta, s.optimizer.config.objective.kl
    margins: dict[tuple[int, int], Tensor] = {}
    losses = []
    for t, g, i, sigma, x, target in s.noised():
        v, reference = s.velocity("policy", x, sigma, g), s.velocity("base", x, sigma, g)
        gap = ((v - target) ** 2).mean() - ((reference - target) ** 2).mean()
        if int(s.batch.scored[g].sum()) < 2:
            continue
        scored = s.batch.scored[g].nonzero().flatten().tolist()
        best, worst = (pick(scored, key=s.batch.advantages[g].tolist().__getitem__) for pick in (max, min))
        sign = (i == best) - (i == worst)
        margins[t, g] = margins.get((t, g), torch.zeros(())) + sign * gap
        losses.append((g, kl * ((v - reference) ** 2).mean()))
    size = s.batch.scored.sum(1).tolist()
    for (_, g), margin in margins.items():  # one pair per group and time: `differentiate` divides by the members
        losses.append((g, -size[g] * torch.nn.functional.logsigmoid(-beta / 2 * margin)))
    return s.differentiate(losses)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.02])
@each_micro_batch
def test_diffusion_dpo(make: Make, micro_batch: int | None, kl: float, missing: bool) -> None:
    s = make({"use": "diffusion-dpo", "beta": 30.0, "kl": kl}, micro_batch=micro_batch, weighting="best-vs-worst",
             missing=missing, rollout={"sampler": "flow-euler"})  # fmt: skip
    assert_same(s.gradient(), diffusion_dpo(s))


@pytest.mark.parametrize("micro_batch", [1, None])
def test_diffusion_dpo_is_dgpo_on_pairs(make: Make, micro_batch: int | None) -> None:
    """With beta_dgpo = beta * G / 2, the sigmoids are equal and the gradients differ by the factor beta_dgpo."""
    beta = 30.0
    beta_dgpo = beta * MEMBERS / 2
    dpo = make({"use": "diffusion-dpo", "beta": beta, "kl": 0.0}, micro_batch=micro_batch, weighting="best-vs-worst")
    dgpo = make({"use": "dgpo", "beta": beta_dgpo, "kl": 0.0, "clip": None}, micro_batch=micro_batch,
                weighting="best-vs-worst")  # fmt: skip
    assert_same(dpo.gradient(), {name: beta_dgpo * g for name, g in dgpo.gradient().items()})
    mine, theirs = dpo.averages, dgpo.averages
    assert mine["sigmoid"] == pytest.approx(theirs["sigmoid"], rel=1e-12)


# -- DiffusionNFT ---------------------------------------------------------------------------------------------------


def diffusion_nft(s: Setting, beta: float, c: float, adaptive: bool) -> dict[str, Tensor]:
    """Return the contrast of the implicit policies; the adaptive one in terms of x0, as in the authors' code."""
    kl = s.optimizer.config.objective.kl
    losses = []
    for _, g, i, sigma, x, target in s.noised():
        if int(s.batch.scored[g].sum()) < 2:
            continue
        v, old = s.velocity("policy", x, sigma, g), s.velocity("ema_fast", x, sigma, g)
        r = min(max(float(s.batch.advantages[g, i]) / c, -1.0), 1.0) / 2 + 0.5
        x0, errors = s.batch.x0[g * MEMBERS + i], []
        for u in ((1 - beta) * old + beta * v, (1 + beta) * old - beta * v):
            if adaptive:
                miss = (x - sigma * u) - x0
                errors.append((miss**2).mean() / max(float(miss.detach().abs().mean()), 1e-5))
            else:
                errors.append(((u - target) ** 2).mean())
        loss = c / beta * (r * errors[0] + (1 - r) * errors[1])
        losses.append((g, loss + kl * ((v - s.velocity("base", x, sigma, g)) ** 2).mean()))
    return s.differentiate(losses)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("beta", "c", "kl"), [(1.0, 5.0, 0.0), (0.1, 1.0, 0.02)])
@each_micro_batch
def test_diffusion_nft(make: Make, micro_batch: int | None, beta: float, c: float, kl: float, adaptive: bool) -> None:
    options = {"beta": beta, "advantage_clip": c, "adaptive": adaptive}
    s = make({"use": "diffusion-nft", "options": options, "kl": kl, "ema_rollouts_after": 0}, micro_batch=micro_batch,
             missing=micro_batch == 4, rollout={"sampler": "flow-euler"})  # fmt: skip
    assert_same(s.gradient(), diffusion_nft(s, beta, c, adaptive))


# -- AWM ------------------------------------------------------------------------------------------------------------


def awm(s: Setting, power: int) -> dict[str, Tensor]:
    """Return PPO on exp of the difference of weighted matching errors; without a clip, the weighted error."""
    section = s.optimizer.config.objective
    losses = []
    for _, g, i, sigma, x, target in s.noised():
        v, old, a = s.velocity("policy", x, sigma, g), s.velocity("ema_fast", x, sigma, g), s.batch.advantages[g, i]
        log_prob, log_prob_old = (-(sigma**power) * ((u - target) ** 2).mean() for u in (v, old))
        if section.clip is None:
            loss = -a * log_prob
        else:
            ratio = (log_prob - log_prob_old).exp()
            loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - section.clip, 1 + section.clip))
        losses.append((g, loss + section.kl * ((v - s.velocity("base", x, sigma, g)) ** 2).mean()))
    return s.differentiate(losses)


@pytest.mark.parametrize(("weighting", "power"), [("uniform", 0), ("sigma", 1), ("sigma-squared", 2)])
@pytest.mark.parametrize(("clip", "kl"), [(None, 0.0), (0.02, 0.02)])
@each_micro_batch
def test_awm(make: Make, micro_batch: int | None, clip: float | None, kl: float, weighting: str, power: int) -> None:
    s = make({"use": "awm", "options": {"weighting": weighting}, "kl": kl, "clip": clip}, micro_batch=micro_batch,
             rollout={"sampler": "flow-euler"})  # fmt: skip
    assert_same(s.gradient(), awm(s, power))
    if clip is not None:
        fraction = s.averages["clip_fraction"]
        assert fraction is not None
        assert 0 < fraction < 1

"""Models that predict noise or VP v, in float64: their weighted velocity error is the one that they were trained with,
and the whole DGPO loss is the one of their own prediction."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.velocity import (
    interpolate,
    velocity_from_epsilon,
    velocity_from_vp_velocity,
    velocity_target,
    vp_from_flow,
)
from dgpo_core.training.accumulation import metric_means
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.types import Conditioning, Predictions, Prompt, TrainingBatch
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig

GROUPS, MEMBERS = 2, 5


class EpsilonToy(ToyBackbone):
    """The toy's network, asked in VP coordinates, predicts the noise."""

    def output(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        scale = vp_from_flow(sigma)[2]
        return super().velocity(scale.view(-1, 1, 1, 1) * x_sigma, sigma, conditioning)

    def wanted(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return velocity_from_epsilon(x_sigma, self.output(x_sigma, sigma, conditioning), sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (1 - sigma).square()


class VPToy(EpsilonToy):
    """It predicts alpha * noise - sigma_vp * x0."""

    def wanted(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        alpha, sigma_vp, _ = (part.view(-1, 1, 1, 1) for part in vp_from_flow(sigma))
        return alpha * noise - sigma_vp * x0

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return velocity_from_vp_velocity(x_sigma, self.output(x_sigma, sigma, conditioning), sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (1 - sigma).square() + sigma.square()


KINDS = [EpsilonToy, VPToy]


def make(kind: type[EpsilonToy], **objective: object) -> Optimizer:
    """On weights whose views all differ."""
    data = run_data(Path("unused"), objective=objective, optimizer={"micro_batch": 3})
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "options": {"double": True}}
    config = RunConfig.model_validate(data)
    backbone = kind(config.backbone, ToyOptions(double=True), device=torch.device("cpu"))
    policy = Policy(backbone, config.objective)
    generator = torch.Generator().manual_seed(1)
    for model in ("ema_fast", "policy"):
        with policy.activate(model), torch.no_grad():
            for parameter in policy.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    policy.load_state({}, updates=100)  # after which the fast EMA is not the policy
    return Optimizer(
        config,
        policy,
        DirectGroupPreference(config.objective, Options()),
        ConditioningCache(backbone),
        autocast=nullcontext,
    )


def random_sigmas(count: int, seed: int) -> Tensor:
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.02834 + (0.93596 - 0.02834) * drawn


@pytest.mark.parametrize("kind", KINDS)
def test_the_weighted_error_of_the_velocity_is_the_networks(kind: type[EpsilonToy]) -> None:
    backbone = make(kind).policy.backbone
    assert isinstance(backbone, EpsilonToy)
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 64, *SHAPE, generator=generator, dtype=torch.float64)
    sigma = random_sigmas(64, 4)
    x = interpolate(x0, noise, sigma)
    rows = backbone.encode([Prompt("a")] * 64)
    with torch.no_grad():
        velocity, output = backbone.velocity(x, sigma, rows), backbone.output(x, sigma, rows)
    nothing = torch.zeros(64)
    p = Predictions(
        velocity, velocity_target(x0, noise), sigma, nothing, nothing, nothing, loss_weight=backbone.loss_weight(sigma)
    )
    expected = (output - backbone.wanted(x0, noise, sigma)).square().mean((1, 2, 3))
    torch.testing.assert_close(p.error(p.velocity, p.target), expected, rtol=1e-11, atol=0)


def test_without_a_weight_nothing_is_multiplied() -> None:
    one, other = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(3)
    plain = Predictions(one, other, nothing, nothing, nothing, nothing)
    assert torch.equal(plain.error(one, other), (one - other).square().flatten(1).mean(1))
    half = Predictions(one.bfloat16(), other.bfloat16(), nothing, nothing, nothing, nothing)
    assert half.error(half.velocity, half.target).dtype == torch.float32


def in_the_networks_space(o: Optimizer, batch: TrainingBatch, sigmas: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Loss and squared-error mean of DGPO over the network's own predictions, member by member, from the paper."""
    section, policy, backbone = o.config.objective, o.policy, o.policy.backbone
    assert isinstance(backbone, EpsilonToy)
    total, errors = torch.zeros((), dtype=torch.float64), []
    for t, sigma in enumerate(sigmas):
        for g in range(GROUPS):
            noise = normal_rows([draws.at("noise", t).at(g)], SHAPE, "cpu").double()
            s = kls = torch.zeros((), dtype=torch.float64)
            for i in range(MEMBERS):
                x0, time = batch.x0[g * MEMBERS + i][None], sigma[None]
                x, rows = interpolate(x0, noise, time), backbone.encode([batch.prompts[g]])
                wanted = backbone.wanted(x0, noise, time)
                with torch.no_grad():
                    with policy.activate("ema_fast"):
                        old = backbone.output(x, time, rows)
                    with policy.activate("base"):
                        base = backbone.output(x, time, rows)
                reference = old if section.reference == "ema_fast" else base
                output = backbone.output(x, time, rows)
                dsm, dsm_ref, dsm_old = (((p - wanted) ** 2).mean() for p in (output, reference, old))
                errors.append(dsm.detach())
                if section.clip is not None:
                    ratio = float((dsm_old - dsm).detach().exp())
                    up = float(batch.advantages[g, i]) > 0
                    if ratio > 1 + section.clip if up else ratio < 1 - section.clip:
                        dsm = dsm.detach()
                s = s + section.beta / MEMBERS * batch.signed_weights[g, i] * (dsm - dsm_ref)
                kls = kls + ((output - base) ** 2).mean() / MEMBERS
            loss = -torch.nn.functional.logsigmoid(-s) / section.beta
            total = total + (loss + section.kl * kls) / (GROUPS * len(sigmas))
    return total, torch.stack(errors).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how", [{"clip": 1e-3, "kl": 0.02}, {"reference": "ema_fast", "clip": None, "kl": 0.3, "beta": 900}]
)
def test_the_whole_loss_is_the_one_of_the_networks_prediction(kind: type[EpsilonToy], how: dict[str, object]) -> None:
    o = make(kind, **how)
    generator = torch.Generator().manual_seed(2)
    advantages = torch.randn(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
    batch = TrainingBatch(
        prompts=tuple(Prompt(f"p{i}") for i in range(GROUPS)),
        x0=torch.randn(GROUPS * MEMBERS, *SHAPE, generator=generator, dtype=torch.float64),
        own=range(GROUPS * MEMBERS),
        advantages=advantages,
        signed_weights=advantages,
        scored=torch.ones(GROUPS, MEMBERS, dtype=torch.bool),
        residual=advantages.sum(1).abs(),
    )
    sigmas, draws = random_sigmas(3, 6), Draws(7)
    added = o.accumulation.add(o.prepare(batch, range(GROUPS), sigmas.tolist(), draws))
    loss, error = in_the_networks_space(o, batch, sigmas, draws)
    gradients = torch.autograd.grad(loss, list(o.policy.parameters.values()))
    assert max(float(g.abs().max()) for g in gradients) > 1e-4
    for parameter, gradient in zip(o.policy.parameters.values(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    assert metric_means([added], o.processes)["dsm"] == pytest.approx(float(error), rel=1e-11)

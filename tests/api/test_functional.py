"""The objective on plain tensors: against closed forms in float64, and against the engine, bit for bit."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dgpo_core.functional as F
from dgpo_core import UserError
from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.builtin.weightings import AbsAdvantage, TopK
from dgpo_core.contracts import MemberLoss
from dgpo_core.draws import Draws
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.types import Predictions, Prompt, TrainingBatch
from dgpo_kit.toy import SHAPE, ToyBackbone, ToyOptions, run_data
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig

GROUPS, MEMBERS = 3, 4
REWARDS = torch.tensor([[10.0, 8.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0], [0.1, 0.9, 0.4, 0.3]], dtype=torch.float64)


def test_interpolation_and_its_velocity() -> None:
    x0, noise = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    x = F.interpolate(x0, noise, sigma)
    for i, s in enumerate(sigma.tolist()):
        np.testing.assert_allclose(x[i].numpy(), (1 - s) * x0[i].numpy() + s * noise[i].numpy(), rtol=1e-15)
    step = 1e-6
    slope = (F.interpolate(x0, noise, sigma + step) - F.interpolate(x0, noise, sigma - step)) / (2 * step)
    np.testing.assert_allclose(slope.numpy(), F.velocity_target(x0, noise).numpy(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_advantages(std: Any) -> None:
    found = F.advantages(REWARDS, std=std, clamp=1.2)
    rewards = REWARDS.numpy()
    scale = {"group": rewards.std(1, keepdims=True) + 1e-4, "batch": rewards.std() + 1e-4, "none": 1.0}[std]
    wanted = ((rewards - rewards.mean(1, keepdims=True)) / scale).clip(-1.2, 1.2)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_one_group_and_missing_rewards() -> None:
    worked = F.advantages(REWARDS[0].float())
    np.testing.assert_allclose(worked.numpy(), [1.4141, 0.4714, -0.9428, -0.9428], atol=5e-5)
    some = torch.tensor([3.0, math.nan, 1.0, math.inf])
    found = F.advantages(some)
    np.testing.assert_allclose(found.numpy(), np.array([1, 0, -1, 0]) / (1 + 1e-4), rtol=1e-12)
    assert F.signed_weights(found, some).tolist() == found.tolist()


def test_signed_weights() -> None:
    a = F.advantages(REWARDS)
    assert torch.equal(F.signed_weights(a, REWARDS), a)  # w = |A|, the paper's
    top = torch.tensor([[1.0, 0, -1, 0], [0, 0, 0, 0], [-1, 1, 0, 0]], dtype=torch.float64)
    assert torch.equal(F.signed_weights(a, REWARDS, "top-k", {"k": 1}), top)
    assert torch.equal(F.signed_weights(a[0], REWARDS[0], "best-vs-worst"), top[0])
    own = F.signed_weights(a, REWARDS, AbsAdvantage(Options()), balance=True)
    np.testing.assert_allclose(own.sum(1).numpy(), 0, atol=1e-12)


def test_distances_of_the_media() -> None:
    a, points = F.advantages(REWARDS), torch.rand(*REWARDS.shape, generator=torch.Generator().manual_seed(5))
    distances = (points[:, :, None] - points[:, None]).abs()
    found = F.signed_weights(a, REWARDS, "diverse", distances=distances)
    assert torch.equal(F.signed_weights(a[0], REWARDS[0], "diverse", distances=distances[0]), found[0])
    assert torch.equal(F.signed_weights(a, REWARDS, "diverse"), a), "as if all were equally different"
    assert torch.equal(found[a < 0], a[a < 0])
    nearest = (distances.double() + 9 * torch.eye(REWARDS.shape[1])).amin(2)
    scale = (nearest / nearest.mean(1, keepdim=True))[0]
    np.testing.assert_allclose(found[0][a[0] > 0], (a[0] * scale)[a[0] > 0], rtol=1e-12)
    with pytest.raises(UserError, match=r"distances must be \(.*one for each pair of members"):
        F.signed_weights(a, REWARDS, "diverse", distances=distances[0])
    distances[0, 1, 2] = torch.nan
    with pytest.raises(UserError, match=r"distances\[0, 1, 2\]: must be finite"):
        F.signed_weights(a, REWARDS, "diverse", distances=distances)


def tensors(count: int = GROUPS * MEMBERS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    names = ("prediction", "reference", "target", "old", "base")
    found = {name: 0.3 * torch.randn(count, 2, 3, generator=generator, dtype=torch.float64) for name in names}
    found["prediction"] = (found["reference"] + 0.1 * found["prediction"]).requires_grad_()
    found["old"] = found["prediction"].detach() + 0.05 * found["old"]
    return found


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": 1e-3},
    "kl": {"kl": 0.1},
    "clip and kl": {"clip": 1e-3, "kl": 0.1},
    "clip of the kl": {"clip": 1e-3, "kl": 0.1, "clip_kl": True},
}


def closed_form(
    t: dict[str, Tensor], a: Tensor, c: Tensor, scored: Tensor, beta: float, mode: dict[str, Any]
) -> Tensor:
    """Mean over groups of -log sigmoid(-S_g) / beta + kl * mean |v - v_base|^2, member by member, as the paper has
    it; a clipped member's error is a constant."""
    total = torch.zeros((), dtype=torch.float64)
    clip = mode.get("clip")
    for g in range(len(c)):
        use = [m for m in range(c.shape[1]) if scored[g, m]]
        s, kl = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for m in use:
            i = g * c.shape[1] + m
            v, v_ref, v_old, v_base, target = (t[k][i] for k in ("prediction", "reference", "old", "base", "target"))
            dsm, dsm_ref, dsm_old = (((one - target) ** 2).mean() for one in (v, v_ref, v_old))
            distance = ((v - v_base) ** 2).mean()
            if clip is not None:
                ratio = math.exp(float(dsm_old) - float(dsm.detach()))
                if ratio > 1 + clip if a[g, m] > 0 else ratio < 1 - clip:
                    dsm = dsm.detach()
                    distance = distance.detach() if mode.get("clip_kl") else distance
            s = s + beta / len(use) * c[g, m] * (dsm - dsm_ref)
            kl = kl + mode.get("kl", 0.0) * distance / len(use)
        if len(use) >= 2:
            total = total + (-torch.nn.functional.logsigmoid(-s) / beta + kl) / len(c)
    return total


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_the_papers(mode: str, missing: bool) -> None:
    given, t, beta = MODES[mode], tensors(), 50.0
    rewards = REWARDS.clone()
    if missing:
        rewards[0, 1] = rewards[2, 1] = math.nan
        rewards[1, :3] = math.nan  # one member is left, and nothing to prefer
    scored = rewards.isfinite()
    a = F.advantages(rewards)
    c = F.signed_weights(a, rewards)
    (wanted,) = torch.autograd.grad(closed_form(t, a, c, scored, beta, given), t["prediction"])
    more = {"old": t["old"]} if "clip" in given else {}
    more |= {"base": t["base"]} if "kl" in given else {}
    loss = F.group_preference_loss(
        t["prediction"], t["reference"], t["target"], c, beta=beta, scored=scored, advantages=a, **more, **given
    )
    (found,) = torch.autograd.grad(loss, t["prediction"])
    assert float(wanted.abs().max()) > 1e-4
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-10, atol=1e-14)


def test_the_value_is_that_of_the_equivalent_form() -> None:
    t, c = tensors(), F.signed_weights(F.advantages(REWARDS), REWARDS)
    dsm = ((t["prediction"] - t["target"]) ** 2).mean((1, 2)).detach().numpy().reshape(GROUPS, MEMBERS)
    dsm_ref = ((t["reference"] - t["target"]) ** 2).mean((1, 2)).numpy().reshape(GROUPS, MEMBERS)
    s = 50 / MEMBERS * (c.numpy() * (dsm - dsm_ref)).sum(1, keepdims=True)
    wanted = (c.numpy() * dsm / (1 + np.exp(-s))).mean()
    loss = F.group_preference_loss(t["prediction"], t["reference"], t["target"], c, beta=50)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-12)


class Watched(DirectGroupPreference):
    """Keeps what the engine showed it."""

    seen: list[Predictions]

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        self.seen.append(predictions)
        return super().loss(predictions, statistic)


@pytest.mark.parametrize("objective", [{"clip": None, "kl": 0.0}, {"clip": 1e-3, "kl": 0.02, "clip_kl": True}])
def test_the_loss_is_the_engines_bit_for_bit(objective: dict[str, Any]) -> None:
    """The engine draws, noises and predicts; its loss and gradient are those of the function on the same tensors."""
    data = run_data(Path("unused"), objective={**objective, "beta": 80.0}, optimizer={"micro_batch": 64})
    config = RunConfig.model_validate(data)
    backbone = ToyBackbone(config.backbone, ToyOptions(), device=torch.device("cpu"))
    policy = Policy(backbone, config.objective)
    generator = torch.Generator().manual_seed(1)
    for model in ("old", "policy"):
        with policy.activate(model), torch.no_grad():  # type: ignore[arg-type]
            for parameter in policy.parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    watched = Watched(config.objective, Options())
    watched.seen = []
    o = Optimizer(config, policy, watched, ConditioningCache(backbone), autocast=nullcontext)
    rewards = REWARDS + torch.tensor([[0.0], [1], [0]]) * torch.arange(MEMBERS)  # each group prefers something
    a = F.advantages(rewards)
    c = F.signed_weights(a, rewards)
    batch = TrainingBatch(
        prompts=tuple(Prompt(f"p{g}", size=(8, 8)) for g in range(GROUPS)),
        x0=tuple(torch.randn(GROUPS * MEMBERS, *SHAPE, generator=generator)),
        own=range(GROUPS * MEMBERS), advantages=a, signed_weights=c,
        scored=torch.ones(GROUPS, MEMBERS, dtype=torch.bool), residual=c.sum(1).abs(),
    )  # fmt: skip
    gradient = o.accumulation.add(o.prepare(batch, range(GROUPS), [0.7], Draws(3)))
    wanted = {name: p.grad.clone() for name, p in policy.parameters.items() if p.grad is not None}
    (seen,) = watched.seen
    assert seen.reference is not None

    more: dict[str, Any] = {}
    if objective["clip"]:
        more = {"old": seen.old, "base": seen.base, **objective}
    members = o.prepare(batch, range(GROUPS), [0.7], Draws(3))
    (every,) = next(iter(members.bundles(members.local_members, 64)))
    again = o.models.predictions(o.models.at(members, members.gather(every), 0))
    policy.forget_gradient()
    loss = F.group_preference_loss(again.velocity, seen.reference, seen.target, c, beta=80.0, **more)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(loss.detach(), gradient.loss)
    assert len(wanted) == len(policy.parameters)
    for name, one in policy.parameters.items():
        assert one.grad is not None
        assert torch.equal(one.grad, wanted[name]), name


def test_weights_of_members_that_are_not_scored_are_not_read() -> None:
    t, rewards = tensors(), REWARDS.clone()
    rewards[0, 1] = math.nan
    weights = F.signed_weights(F.advantages(rewards), rewards)
    given = (t["prediction"], t["reference"], t["target"])
    wanted = F.group_preference_loss(*given, weights, scored=rewards.isfinite())
    weights[0, 1] = math.nan
    assert torch.equal(F.group_preference_loss(*given, weights, scored=rewards.isfinite()), wanted)
    with pytest.raises(ValueError, match=r"weights\[0, 1\]: must be finite, got nan"):
        F.group_preference_loss(*given, weights)


def test_half_precision_is_summed_in_float32() -> None:
    t = {name: one.detach().to(torch.bfloat16) for name, one in tensors().items()}
    v = t["prediction"].requires_grad_()
    loss = F.group_preference_loss(v, t["reference"], t["target"], F.advantages(REWARDS))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


def test_nothing_to_prefer_is_a_loss_of_zero_that_can_be_differentiated() -> None:
    v = torch.ones(1, 2, requires_grad=True)
    loss = F.group_preference_loss(v, torch.ones(1, 2), torch.ones(1, 2), torch.ones(1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert v.grad is not None
    assert not bool(v.grad.any())


V, C = torch.zeros(12, 2), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: F.advantages(REWARDS, clamp=-1), "clamp: must be greater than 0, not -1"),
        (lambda: F.advantages(REWARDS, std="grup"), "std: must be group, batch or none, not 'grup'"),  # type: ignore[arg-type]
        (lambda: F.advantages(REWARDS[None]), r"rewards must be \[groups, members\], or \[members\] of one group, not"),
        (lambda: F.signed_weights(C, REWARDS[0]), r"one shape; they have \(3, 4\) and \(4,\)"),
        (lambda: F.signed_weights(C, REWARDS, "abs"), "unknown weighting 'abs'; did you mean abs-advantage?"),
        (lambda: F.signed_weights(C, REWARDS, "top-k", {"m": 1}), "options.m: unknown key"),
        (lambda: F.signed_weights(C, REWARDS, TopK(Options()), {"k": 1}), "options: belong to a weighting"),
        (lambda: F.group_preference_loss(V, V, V, C, beta=0), "beta: must be greater than 0, not 0"),
        (lambda: F.group_preference_loss(V, V, V, C, clip=0.1), "old and clip belong together"),
        (lambda: F.group_preference_loss(V, V, V, C, base=V), "base and kl belong together"),
        (lambda: F.group_preference_loss(V, V[:3], V, C), r"reference must have the shape of prediction, \(12, 2\)"),
        (lambda: F.group_preference_loss(V, V, V, C[:2]), "one weight for each of the 12 predictions"),
        (lambda: F.group_preference_loss(V, V, V, C, scored=C[0] > 0), "scored must have the shape of weights"),
        (lambda: F.group_preference_loss(V, V, V, C, loss_weight=C), r"loss_weight must be \[12\], not \(3, 4\)"),
        (
            lambda: F.group_preference_loss(V, V, V, C + math.nan),
            r"weights\[0, 0\]: must be finite, got nan; .*scored=",
        ),
        (lambda: F.group_preference_loss(V, V, V, C, advantages=C + math.inf), r"advantages\[0, 0\]: must be finite"),
        (lambda: F.group_preference_loss(V, V, V, C, loss_weight=V[:, 0] / 0), r"loss_weight\[0\]: must be finite"),
        (lambda: F.signed_weights(C + math.nan, REWARDS), r"advantages\[0, 0\]: must be finite, got nan"),
        (lambda: F.advantages([1.0, 2.0]), "rewards must be a tensor, not list"),  # type: ignore[arg-type]
        (lambda: F.advantages(torch.zeros(2, 0)), r"rewards must be \[groups, members\], .* not \(2, 0\)"),
        (lambda: F.group_preference_loss(V, V, V, [1.0] * 12), "weights must be a tensor, not list"),  # type: ignore[arg-type]
        (lambda: F.group_preference_loss(V[:, 0], V[:, 0], V[:, 0], C), r"prediction must be \[samples, ...\]"),
        (lambda: F.group_preference_loss(V.long(), V, V, C), "floating point numbers, not .* of int64"),
    ],
)
def test_mistakes(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()


def test_half_precision_without_a_preference_is_zero() -> None:
    v = torch.full((12, 2), 6e4, dtype=torch.float16, requires_grad=True)  # their sum is inf
    loss = F.group_preference_loss(v, v.detach(), v.detach(), torch.zeros(12, 1))
    loss.backward()
    assert (float(loss.detach()), loss.dtype) == (0, torch.float32)
    assert v.grad is not None
    assert not bool(v.grad.any())

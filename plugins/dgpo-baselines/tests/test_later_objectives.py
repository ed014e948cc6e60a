"""`crd`, `elbo-pg` and `regularized-dgpo` against float64 autograd of their papers' equations, on one group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Predictions
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.training import ObjectiveSection

MEMBERS = 6


def group(seed: int = 0, *, near: float = 0.1, scale: float = 1.0) -> Predictions:
    """A group whose old, reference and base velocities are `near` the policy's; advantages sum to 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(5, MEMBERS, 2, 3, 3, generator=generator, dtype=torch.float64)
    velocity, target = noise[:2]
    others = [velocity + near * part for part in noise[2:]]
    advantages = torch.randn(MEMBERS, generator=generator, dtype=torch.float64)
    advantages = scale * (advantages - advantages.mean())
    sigma = torch.rand(MEMBERS, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    return Predictions(
        velocity.clone().requires_grad_(), target, sigma, advantages, advantages.clone(),
        torch.full((MEMBERS,), float(MEMBERS), dtype=torch.float64), *others,
    )  # fmt: skip


def make(registry: Registry, use: str, options: dict[str, Any] | None = None, **section: Any) -> Objective:
    data = {"use": use, "kl": 0.0, "clip": None, "options": options or {}} | section
    made: Objective = registry.create("objective", ObjectiveSection.model_validate(data))
    return made


def loss_of(objective: Objective, p: Predictions) -> MemberLoss:
    statistic = objective.statistic(p).sum().expand(MEMBERS) if objective.needs_statistic else None
    return objective.loss(p, statistic)


def gradient(objective: Objective, p: Predictions) -> Tensor:
    """The gradient of the group's mean loss with respect to the policy's velocities."""
    (found,) = torch.autograd.grad(loss_of(objective, p).loss.mean(), p.velocity)
    return found


def derivative(loss: Tensor, p: Predictions) -> Tensor:
    (found,) = torch.autograd.grad(loss, p.velocity)
    assert float(found.abs().max()) > 1e-6, "the gradient to compare with must not vanish"
    return found


def dsm(p: Predictions, velocity: Tensor, how: str) -> Tensor:
    """The error of each member, one at a time: plain, or divided by its mean magnitude, as a velocity or as x0."""
    found = []
    for v, target, sigma in zip(velocity, p.target, p.sigma, strict=True):
        miss = sigma * (v - target) if how == "x0" else v - target
        divisor = 1.0 if how == "plain" else float(miss.detach().abs().mean())
        found.append((miss**2).mean() / divisor)
    return torch.stack(found)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# -- centered reward distillation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("beta", "limit", "scale"), [(1.0, 5.0, 1.0), (40.0, 1.0, 2.0)])
def test_crd_is_the_papers_regression(
    registry: Registry, adaptive: bool, beta: float, limit: float, scale: float
) -> None:
    p = group(scale=scale)
    assert (float(p.advantages.abs().max()) > limit) == (limit == 1.0), "the clip acts in one of the two cases"
    assert p.reference is not None
    how = "velocity" if adaptive else "plain"
    implicit = dsm(p, p.reference, how) - dsm(p, p.velocity, how)
    reward = p.advantages.clamp(-limit, limit) / (2 * limit) + 0.5
    residual = beta * (implicit - implicit.detach().mean()) - (reward - reward.mean())
    expected = limit / beta * (residual**2).mean()
    options = {"beta": beta, "advantage_clip": limit, "adaptive": adaptive}
    objective = make(registry, "crd", options, reference="ema_fast")
    close(loss_of(objective, p).loss.mean(), expected)
    close(gradient(objective, p), derivative(expected, p))
    # In closed form: the advantage minus what is learned already, times the gradient of the error.
    if limit == 5.0:
        rest = p.advantages - 2 * limit * beta * (implicit - implicit.mean()).detach()
        close(gradient(objective, p), derivative((rest * dsm(p, p.velocity, how)).mean(), p))


def test_crd_ends_where_the_reward_is_fitted(registry: Registry) -> None:
    """At p_i - mean p = (A_i - mean A) / (10 beta) nothing is left to learn; residuals always sum to 0."""
    p, beta = group(), 0.5
    assert p.reference is not None
    implicit = (dsm(p, p.reference, "plain") - dsm(p, p.velocity, "plain")).detach()
    fitted = 10 * beta * (implicit - implicit.mean())
    assert float(fitted.abs().max()) < 5
    objective = make(registry, "crd", {"beta": beta, "adaptive": False}, reference="ema_fast")
    done = replace(p, advantages=fitted, signed_weights=fitted)
    assert float(gradient(objective, done).abs().max()) < 1e-14
    shifted = replace(p, signed_weights=p.signed_weights + 0.7)
    close(loss_of(objective, shifted).loss, loss_of(objective, p).loss)  # centered: a constant of the group cancels


def test_crd_starts_as_dgpo_without_its_sigmoid(registry: Registry) -> None:
    p = group()
    same = replace(p, reference=p.velocity.detach(), old=p.velocity.detach(), base=None)
    crd = make(registry, "crd", {"adaptive": False}, reference="ema_fast")
    dgpo = make(registry, "dgpo", beta=30.0)
    close(gradient(crd, same), 2 * gradient(dgpo, same))  # sigmoid(0) = 1/2


@pytest.mark.parametrize("floor", [None, 0.0, 0.1, 1.0])
def test_crd_weighs_the_kl_term_by_the_reward(registry: Registry, floor: float | None) -> None:
    p, kl = group(), 0.3
    assert p.base is not None
    plain, whole = (make(registry, "crd", {"kl_floor": floor}, reference="ema_fast", kl=k) for k in (0.0, kl))
    reward = p.advantages / 10 + 0.5
    share = torch.ones(MEMBERS, dtype=torch.float64) if floor is None else floor + reward * (1 - floor)
    distance = ((p.velocity - p.base) ** 2).flatten(1).mean(1)
    close(loss_of(whole, p).loss - loss_of(plain, p).loss, kl * share * distance)


def test_crd_needs_the_old_policy_as_its_reference(registry: Registry) -> None:
    run = RunConfig.model_validate(run_data(Path("unused")))
    with pytest.raises(UserError, match=r"objective\.reference: frozen: crd compares with the old policy"):
        make(registry, "crd").check(run)


# -- policy gradients on the evidence lower bound -------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("form", ["epg", "pepg", "par"])
def test_elbo_policy_gradients(registry: Registry, form: str, adaptive: bool, ratio: bool) -> None:
    p, scale, kl = group(near=0.5), 0.3, 0.2
    assert p.old is not None
    assert p.base is not None
    how = "x0" if adaptive else "plain"
    log_prob, log_prob_old = -dsm(p, p.velocity, how), -dsm(p, p.old, how)
    log_ratio = log_prob - log_prob_old
    rho = log_ratio.detach().exp() if ratio else torch.ones(MEMBERS, dtype=torch.float64)
    a = scale * p.advantages
    member = {
        "epg": -rho * a * log_prob,
        "pepg": -rho * (a - log_ratio.detach()) * log_prob,
        "par": rho * (a - log_ratio) ** 2 / 2,
    }[form]
    expected = (member + kl * ((p.velocity - p.base) ** 2).flatten(1).mean(1)).mean()
    objective = make(registry, "elbo-pg", {"form": form, "scale": scale, "adaptive": adaptive, "ratio": ratio}, kl=kl)
    close(loss_of(objective, p).loss.mean(), expected)
    close(gradient(objective, p), derivative(expected, p))


@pytest.mark.parametrize("adaptive", [True, False])
def test_par_has_the_gradient_of_pepg(registry: Registry, adaptive: bool) -> None:
    p = group(near=0.5)
    par, pepg = (make(registry, "elbo-pg", {"form": form, "adaptive": adaptive}) for form in ("par", "pepg"))
    close(gradient(par, p), gradient(pepg, p))


def test_epg_is_dgpo_without_its_sigmoid(registry: Registry) -> None:
    p = group()
    dgpo = make(registry, "dgpo", beta=30.0)
    sigmoid = loss_of(dgpo, p).metrics["sigmoid"][0]
    assert 0.05 < float(sigmoid) < 0.95
    for old, ratio in ((None, False), (p.velocity.detach(), True)):
        epg = make(registry, "elbo-pg", {"form": "epg", "scale": 1.0, "adaptive": False, "ratio": ratio})
        assert epg.needs_old is ratio
        close(sigmoid * gradient(epg, replace(p, old=old)), gradient(dgpo, p))


# -- regularized DGPO -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section", [{}, {"clip": 1e-2}, {"kl": 0.1}, {"clip": 1e-2, "kl": 0.1, "clip_kl": True, "reference": "ema_fast"}]
)
def test_without_its_options_it_is_dgpo_to_the_last_bit(registry: Registry, section: dict[str, Any]) -> None:
    p = group()
    plain, regularized = (make(registry, use, **section) for use in ("dgpo", "regularized-dgpo"))
    mine, theirs = loss_of(regularized, p), loss_of(plain, p)
    assert torch.equal(mine.loss, theirs.loss)
    assert mine.metrics.keys() == theirs.metrics.keys()
    assert all(torch.equal(mine.metrics[name], theirs.metrics[name]) for name in theirs.metrics)
    assert torch.equal(gradient(regularized, p), gradient(plain, p))
    for name in ("needs_reference", "needs_base", "needs_old", "skips_zero_weights", "needs_statistic"):
        assert getattr(regularized, name) == getattr(plain, name)


def preference(p: Predictions, beta: float, how: str, moving: Tensor) -> Tensor:
    """The paper's loss over beta; members that are not `moving` contribute a constant."""
    assert p.reference is not None
    errors = dsm(p, p.velocity, how)
    errors = torch.where(moving, errors, errors.detach())
    s = beta / MEMBERS * (p.signed_weights * (errors - dsm(p, p.reference, how))).sum()
    return -torch.nn.functional.logsigmoid(-s) / beta


@pytest.mark.parametrize("seed", range(4))
def test_a_member_outside_the_trust_region_stays_in_the_statistic(registry: Registry, seed: int) -> None:
    """Flow-DPPO's mask, member by member: far from the old policy and on its way further out."""
    p, beta = group(seed, near=0.3), 25.0
    assert p.old is not None
    distance = [float(((v - old) ** 2).mean()) for v, old in zip(p.velocity.detach(), p.old, strict=True)]
    limit = min(distance) * 1.001  # one member is inside
    errors, old_errors = dsm(p, p.velocity, "plain").tolist(), dsm(p, p.old, "plain").tolist()
    moving = torch.tensor([
        not (d > limit and ((a > 0 and e < o) or (a <= 0 and e > o)))
        for d, a, e, o in zip(distance, p.advantages.tolist(), errors, old_errors, strict=True)
    ])  # fmt: skip
    assert 0 < int(moving.sum()) < MEMBERS
    objective = make(registry, "regularized-dgpo", {"trust_region": limit}, beta=beta)
    assert objective.needs_old
    found = gradient(objective, p)
    close(found, derivative(preference(p, beta, "plain", moving), p))
    assert not found[~moving].any()
    metrics = loss_of(objective, p).metrics
    assert metrics["clip_fraction"].bool().tolist() == (~moving).tolist()
    assert metrics["old_distance"].tolist() == pytest.approx(distance)
    # The members inside have the gradient that they have without the mask: S_g counts the others too.
    whole = gradient(make(registry, "regularized-dgpo", {"trust_region": 1e6}, beta=beta), p)
    assert torch.equal(found[moving], whole[moving])
    assert torch.equal(whole, gradient(make(registry, "dgpo", beta=beta), p))


def test_errors_divided_by_their_magnitude(registry: Registry) -> None:
    p, beta = group(), 25.0
    objective = make(registry, "regularized-dgpo", {"adaptive": True}, beta=beta)
    unmasked = torch.ones(MEMBERS, dtype=torch.bool)
    close(gradient(objective, p), derivative(preference(p, beta, "x0", unmasked), p))
    # The clip compares the same errors.
    assert p.old is not None
    gap = (dsm(p, p.old, "x0") - dsm(p, p.velocity, "x0")).exp()
    moving = ~torch.where(p.advantages > 0, gap > 1.01, gap < 0.99)
    assert 0 < int(moving.sum()) < MEMBERS
    clipped = make(registry, "regularized-dgpo", {"adaptive": True}, beta=beta, clip=0.01)
    close(gradient(clipped, p), derivative(preference(p, beta, "x0", moving), p))


@pytest.mark.parametrize("start", [0.0, 0.4, 0.95])
def test_the_kl_term_starts_at_its_noise_level(registry: Registry, start: float) -> None:
    p, kl = replace(group(), sigma=torch.tensor([0.1, 0.3, 0.4, 0.5, 0.8, 0.9], dtype=torch.float64)), 0.3
    assert p.base is not None
    without, within = (make(registry, "regularized-dgpo", {"kl_from": start}, kl=k) for k in (0.0, kl))
    distance = ((p.velocity - p.base) ** 2).flatten(1).mean(1)
    close(loss_of(within, p).loss - loss_of(without, p).loss, kl * distance * (p.sigma >= start))
    assert torch.equal(loss_of(within, p).metrics["kl"], distance.detach())


def test_a_clip_beside_a_trust_region_is_refused(registry: Registry) -> None:
    run = RunConfig.model_validate(run_data(Path("unused")))
    with pytest.raises(UserError, match=r"objective\.clip: 0\.2 has no effect on objective: regularized-dgpo"):
        make(registry, "regularized-dgpo", {"trust_region": 1e-3}, clip=0.2).check(run)

"""Checks of objectives: a loss per member, and independence of the members."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import PathStep, Predictions, Prompt, ScoredGroups
from dgpo_kit.contracts._assertions import close, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_objective", "objective_checks"]

SIZE = 4


def check_objective(objective: Objective) -> None:
    """Check that an objective returns one loss per member with a gradient for the policy alone, and that members are
    independent given the group's statistic. Raises AssertionError at the first violation."""
    run_all(objective_checks(lambda: [objective]))


def objective_checks(make: Callable[[], Sequence[Objective]]) -> Iterator[Check]:
    """Yield the checks of an objective; each covers all objectives that `make` builds, usually one per setting."""
    return checks_of(cache(make), statistic, losses, gradient, members, zero_weights, scales, random_state)


def statistic(objectives: Sequence[Objective]) -> None:
    """`statistic` returns one summand per member, without gradient."""
    for objective in objectives:
        _statistic(objective, _predictions(objective))


def losses(objectives: Sequence[Objective]) -> None:
    """Losses are finite [B]; metrics are [B] without gradient."""
    for objective in objectives:
        found = _loss(objective, _predictions(objective))
        that(found.loss.shape == (SIZE,), f"loss must have shape [B] [{SIZE}], got {list(found.loss.shape)}")
        that(found.loss.isfinite().all(), "losses must be finite")
        for name, values in found.metrics.items():
            that(values.shape == (SIZE,), f"metric {name} must have shape [B] [{SIZE}], got {list(values.shape)}")
            that(not values.requires_grad, f"metric {name} must not require a gradient")


def gradient(objectives: Sequence[Objective]) -> None:
    """The loss has a finite, nonzero gradient with respect to the policy's velocity."""
    for objective in objectives:
        found = _gradient(objective)
        that(bool(found.isfinite().all() and found.any()), "the gradient of the loss must be finite and not 0")


def members(objectives: Sequence[Objective]) -> None:
    """Given the group's statistic, losses and gradients do not depend on the micro-batch."""
    for objective in objectives:
        p = _predictions(objective)
        complete, all_gradients = _statistic(objective, p), _gradient(objective)
        together = objective.loss(p, complete).loss
        for i in range(SIZE):
            row = _predictions(objective, slice(i, i + 1))
            alone = objective.loss(row, None if complete is None else complete[i : i + 1]).loss
            given = "given the group's statistic, the"
            close(alone[0], together[i], f"{given} loss of a member must not depend on the other members", 1e-12)
            (found,) = torch.autograd.grad(alone.sum(), row.velocity)
            requirement = f"{given} gradient of a member must not depend on the other members"
            close(found[0], all_gradients[i], requirement, 1e-12)


def zero_weights(objectives: Sequence[Objective]) -> None:
    """With `skips_zero_weights`, members of weight 0 contribute neither gradient nor statistic."""
    skipping = [objective for objective in objectives if objective.skips_zero_weights]
    if not skipping:
        raise unittest.SkipTest("the objective does not declare `skips_zero_weights`")
    for objective in skipping:
        p = _predictions(objective)
        skipped = p.signed_weights == 0
        requirement = "with `skips_zero_weights`, the gradient of a member of weight 0 must be 0"
        that(not _gradient(objective)[skipped].any(), requirement)
        if objective.needs_statistic:
            summands = objective.statistic(p)
            that(not summands[skipped].any(), "the statistic of a member of weight 0 must be 0")


def scales(objectives: Sequence[Objective]) -> None:
    """`kl_scales` returns None, or one finite factor >= 0 per member."""
    rewards = normal(2, SIZE, seed=5).double()
    every, counts = torch.ones(2, SIZE, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    groups = ScoredGroups(
        prompts=(Prompt("a"), Prompt("b")), x0=(), own=(), rewards=rewards, summed=rewards, scored=every,
        per_reward={"first": rewards, "second": rewards.square()}, diversity=torch.zeros(2),
        counted={"first": counts, "second": ~counts},
    )  # fmt: skip
    for objective in objectives:
        found = objective.kl_scales(groups)
        if found is not None:
            shape = list(rewards.shape)
            that(found.shape == rewards.shape, f"kl_scales must have shape [g, G] {shape}, got {list(found.shape)}")
            that(bool((found.isfinite() & (found >= 0)).all()), "kl_scales must be finite and >= 0")


def random_state(objectives: Sequence[Objective]) -> None:
    """Losses do not use a global random generator."""
    for objective in objectives:
        with global_state_left_alone("an objective"):
            _loss(objective, _predictions(objective))


def _predictions(objective: Objective, rows: slice = slice(None)) -> Predictions:
    """Return four members of a group in float64, one with weight 0; the frozen models are close to the policy."""
    shape = (SIZE, 2, 3, 3)
    velocity, target = normal(*shape, seed=1).double(), normal(*shape, seed=2).double()
    advantages = torch.tensor([1.5, 0.5, -2.0, 0.0], dtype=torch.float64)
    return Predictions(
        velocity=velocity[rows].requires_grad_(),
        target=target[rows],
        sigma=torch.full((SIZE,), 0.9, dtype=torch.float64)[rows],
        advantages=advantages[rows],
        signed_weights=advantages[rows],
        group_size=torch.full((SIZE,), float(SIZE), dtype=torch.float64)[rows],
        reference=(velocity + 0.01 * target)[rows].detach() if objective.needs_reference else None,
        base=(velocity - 0.01 * target)[rows].detach() if objective.needs_base else None,
        old=(velocity + 0.001 * target)[rows].detach() if objective.needs_old else None,
        step=_step(velocity + 0.001 * target, rows) if objective.needs_path else None,
    )


def _step(drawn_by: Tensor, rows: slice) -> PathStep:
    """Return a sampler step taken by a model close to the policy."""
    x, z = (normal(*drawn_by.shape, seed=seed).double()[rows] for seed in (3, 4))
    sigma, next_sigma, std = 0.9, 0.8, 0.2

    def distribution(velocity: Tensor) -> tuple[Tensor, float]:
        return x + (next_sigma - sigma) * velocity, std

    mean, _ = distribution(drawn_by[rows].detach())
    next_x = mean + std * z
    log_prob = gaussian_log_prob(next_x, mean, std)
    return PathStep(x, next_x, sigma, next_sigma, log_prob, distribution, mean=mean, stds=[0.3, std, 0.1])


def _loss(objective: Objective, p: Predictions) -> MemberLoss:
    return objective.loss(p, _statistic(objective, p))


def _gradient(objective: Objective) -> Tensor:
    p = _predictions(objective)
    (found,) = torch.autograd.grad(_loss(objective, p).loss.sum(), p.velocity)
    return found


def _statistic(objective: Objective, p: Predictions) -> Tensor | None:
    """Return the group's statistic, repeated for each member."""
    if not objective.needs_statistic:
        return None
    summands = objective.statistic(p)
    count = len(p.velocity)
    that(summands.shape == (count,), f"`statistic` must have shape [B] [{count}], got {list(summands.shape)}")
    that(not summands.requires_grad, "`statistic` must not require a gradient")
    return summands.sum().expand(count)

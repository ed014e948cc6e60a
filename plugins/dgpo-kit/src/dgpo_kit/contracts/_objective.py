"""Objectives: a loss per member, and members that do not touch each other."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import PathStep, Predictions
from dgpo_kit.contracts._assertions import close, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_objective", "objective_checks"]

SIZE = 4


def check_objective(objective: Objective) -> None:
    """A loss per member with a gradient for the policy alone; members apart once the statistic is complete."""
    run_all(objective_checks(lambda: [objective]))


def objective_checks(make: Callable[[], Sequence[Objective]]) -> Iterator[Check]:
    """What an objective promises, each for every one that `make` builds: the same with different settings."""
    return checks_of(cache(make), statistic, losses, gradient, members, zero_weights, random_state)


def statistic(objectives: Sequence[Objective]) -> None:
    """One share a member, without gradient."""
    for objective in objectives:
        _statistic(objective, _predictions(objective))


def losses(objectives: Sequence[Objective]) -> None:
    """Finite [B], and metrics [B] without gradient."""
    for objective in objectives:
        found = _loss(objective, _predictions(objective))
        that(found.loss.shape == (SIZE,), f"there is one loss a member: [{SIZE}], not {list(found.loss.shape)}")
        that(found.loss.isfinite().all(), "losses are finite")
        for name, values in found.metrics.items():
            that(values.shape == (SIZE,), f"metric {name} has one value a member, not {list(values.shape)}")
            that(not values.requires_grad, f"metric {name} has no gradient")


def gradient(objectives: Sequence[Objective]) -> None:
    """The policy gets one."""
    for objective in objectives:
        found = _gradient(objective)
        that(bool(found.isfinite().all() and found.any()), "the loss has a finite gradient")


def members(objectives: Sequence[Objective]) -> None:
    """Any micro-batch gives the same losses and gradients, once the statistic is complete."""
    for objective in objectives:
        p = _predictions(objective)
        complete, all_gradients = _statistic(objective, p), _gradient(objective)
        together = objective.loss(p, complete).loss
        for i in range(SIZE):
            one = _predictions(objective, slice(i, i + 1))
            alone = objective.loss(one, None if complete is None else complete[i : i + 1]).loss
            close(alone[0], together[i], "with the statistic complete, a member's loss is its own", 1e-12)
            (own,) = torch.autograd.grad(alone.sum(), one.velocity)
            close(own[0], all_gradients[i], "with the statistic complete, a member's gradient is its own", 1e-12)


def zero_weights(objectives: Sequence[Objective]) -> None:
    """What `skips_zero_weights` says."""
    skipping = [objective for objective in objectives if objective.skips_zero_weights]
    if not skipping:
        raise unittest.SkipTest("it does not declare `skips_zero_weights`")
    for objective in skipping:
        p = _predictions(objective)
        idle = p.signed_weights == 0
        promise = "a member of weight 0 has no gradient where its passes may be skipped"
        that(not _gradient(objective)[idle].any(), promise)
        if objective.needs_statistic:
            share = objective.statistic(p)
            that(not share[idle].any(), "a member of weight 0 adds nothing to the statistic")


def random_state(objectives: Sequence[Objective]) -> None:
    """Losses are not drawn."""
    for objective in objectives:
        with global_state_left_alone("an objective"):
            _loss(objective, _predictions(objective))


def _predictions(objective: Objective, rows: slice = slice(None)) -> Predictions:
    """Four members of a group in float64, one of them of weight 0; frozen models close to the policy."""
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
    """A step that weights close to the policy's took."""
    x, z = (normal(*drawn_by.shape, seed=seed).double()[rows] for seed in (3, 4))
    sigma, next_sigma, std = 0.9, 0.8, 0.2

    def distribution(velocity: Tensor) -> tuple[Tensor, float]:
        return x + (next_sigma - sigma) * velocity, std

    mean, _ = distribution(drawn_by[rows].detach())
    next_x = mean + std * z
    return PathStep(x, next_x, sigma, next_sigma, gaussian_log_prob(next_x, mean, std), distribution)


def _loss(objective: Objective, p: Predictions) -> MemberLoss:
    return objective.loss(p, _statistic(objective, p))


def _gradient(objective: Objective) -> Tensor:
    p = _predictions(objective)
    (found,) = torch.autograd.grad(_loss(objective, p).loss.sum(), p.velocity)
    return found


def _statistic(objective: Objective, p: Predictions) -> Tensor | None:
    """The group's statistic, for each of its members."""
    if not objective.needs_statistic:
        return None
    split_samples = objective.statistic(p)
    that(split_samples.shape == (len(p.velocity),), f"there is one share a member, not {list(split_samples.shape)}")
    that(not split_samples.requires_grad, "shares of the statistic have no gradient")
    return split_samples.sum().expand(len(split_samples))

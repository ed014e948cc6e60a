"""What stands between rewards and gradients: weightings, timestep policies and objectives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, Objective, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.testing.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_core.types import Predictions

__all__ = ["check_objective", "check_timesteps", "check_weighting"]


def check_weighting(weighting: AdvantageWeighting, sizes: Sequence[int] = (2, 3, 8, 24)) -> None:
    """Finite weights >= 0, whatever the order of the members; a cancelling partition function if it declares one."""
    for size in sizes:
        rewards = normal(size, seed=size).double()
        for tied in (False, True):
            if tied:
                rewards[: size // 2] = rewards[0]
            advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
            kept = advantages.clone(), rewards.clone()
            with global_state_left_alone("a weighting"):
                weights = weighting.weights(advantages, rewards)
                again = weighting.weights(advantages, rewards)
            that(weights.shape == (size,), f"there is one weight a member: [{size}], not {list(weights.shape)}")
            that(bool((weights.isfinite() & (weights >= 0)).all()), f"weights are finite and >= 0: {weights.tolist()}")
            equal(again, weights, "weights are the same every time")
            equal(torch.stack(kept), torch.stack((advantages, rewards)), "advantages and rewards are left alone")
            signed = torch.where(advantages > 0, weights, -weights)
            if weighting.cancels_partition:
                close(signed.sum(), torch.zeros(()).double(), "signed weights sum to 0 in every group", 1e-9)
            if not tied:
                order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
                moved = weighting.weights(advantages[order], rewards[order])
                close(moved, weights[order], "a member keeps its weight whatever its place", 1e-12)


def check_timesteps(
    make: Callable[[], TimestepPolicy],
    *,
    counts: Sequence[int] = (1, 2, 4),
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Times in the range, from their key alone; its state survives JSON and is all there is to remember.

    make: builds the policy; metrics: what it may observe after an iteration.
    """
    observed = metrics if metrics is not None else {"iteration": 1, "reward.mean": 0.5, "kl": 0.01, "grad_norm": 1.0}
    for t_min, t_max in ((0.0, 1.0), (0.3, 1.0), (0.25, 0.75)):
        policy = make()
        for iteration in range(3):
            context = TimestepContext(
                sigmas=torch.linspace(1, 0, 21, dtype=torch.float64),
                t_min=t_min, t_max=t_max, shift=1.0, iteration=iteration, iterations=3,
            )  # fmt: skip
            restored = make()
            restored.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
            for count in counts:
                draws = Draws(0).at(iteration, count)
                with global_state_left_alone("a timestep policy"):
                    policy.check(context, count)
                    times = policy.draw(count, context, draws)
                that(times.shape == (count,), f"{count} times are drawn, not {list(times.shape)}")
                that(times.dtype == torch.float64 and times.device.type == "cpu", "times are float64 on the CPU")
                inside = bool(((times >= t_min) & (times <= t_max)).all())
                that(inside, f"times lie in [{t_min}, {t_max}]: {times.tolist()}")
                equal(restored.draw(count, context, draws), times, "its state, as JSON, is all there is to remember")
            policy.observe(observed)


def check_objective(objective: Objective) -> None:
    """A loss per member with a gradient for the policy alone; members apart once the statistic is complete."""
    p = _predictions(objective)
    with global_state_left_alone("an objective"):
        statistic = _statistic(objective, p)
        found = objective.loss(p, statistic)
    size = len(p.velocity)
    that(found.loss.shape == (size,), f"there is one loss a member: [{size}], not {list(found.loss.shape)}")
    that(found.loss.isfinite().all(), "losses are finite")
    for name, values in found.metrics.items():
        that(values.shape == (size,), f"metric {name} has one value a member, not {list(values.shape)}")
        that(not values.requires_grad, f"metric {name} has no gradient")
    (gradient,) = torch.autograd.grad(found.loss.sum(), p.velocity)
    that(bool(gradient.isfinite().all() and gradient.any()), "the loss has a finite gradient")
    for i in range(size):
        one = _predictions(objective, slice(i, i + 1))
        alone = objective.loss(one, None if statistic is None else statistic[i : i + 1])
        close(alone.loss[0], found.loss[i], "with the statistic complete, a member's loss is its own", 1e-12)
        (own,) = torch.autograd.grad(alone.loss.sum(), one.velocity)
        close(own[0], gradient[i], "with the statistic complete, a member's gradient is its own", 1e-12)
    if objective.skips_zero_weights:
        idle = p.signed_weights == 0
        that(not gradient[idle].any(), "a member of weight 0 has no gradient where its passes may be skipped")
        if objective.needs_statistic:
            share = objective.statistic(p)
            that(not share[idle].any(), "a member of weight 0 adds nothing to the statistic")


def _predictions(objective: Objective, rows: slice = slice(None)) -> Predictions:
    """Four members of a group in float64, one of them of weight 0; frozen models close to the policy."""
    size, shape = 4, (4, 2, 3, 3)
    velocity, target = normal(*shape, seed=1).double(), normal(*shape, seed=2).double()
    advantages = torch.tensor([1.5, 0.5, -2.0, 0.0], dtype=torch.float64)
    return Predictions(
        velocity=velocity[rows].requires_grad_(),
        target=target[rows],
        sigma=torch.tensor([0.9, 0.9, 0.9, 0.9], dtype=torch.float64)[rows],
        advantages=advantages[rows],
        signed_weights=advantages[rows],
        group_size=torch.full((size,), float(size), dtype=torch.float64)[rows],
        reference=(velocity + 0.01 * target)[rows].detach() if objective.needs_reference else None,
        old=(velocity + 0.001 * target)[rows].detach() if objective.needs_old else None,
    )


def _statistic(objective: Objective, p: Predictions) -> Tensor | None:
    """The group's statistic, for each of its members."""
    if not objective.needs_statistic:
        return None
    shares = objective.statistic(p)
    that(shares.shape == (len(p.velocity),), f"there is one share a member, not {list(shares.shape)}")
    that(not shares.requires_grad, "shares of the statistic have no gradient")
    return shares.sum().expand(len(shares))

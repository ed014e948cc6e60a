"""Timestep policies: times in the range, from their key; state that survives JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from dgpo_core.contracts import TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.testing.contracts._assertions import equal, global_state_left_alone, that
from dgpo_core.testing.contracts._check import Check, checks_of, run_all

__all__ = ["check_timesteps", "timesteps_checks"]

COUNTS = (1, 2, 4)
METRICS = {"iteration": 1, "reward.mean": 0.5, "kl": 0.01, "grad_norm": 1.0}
ITERATIONS = 3


def check_timesteps(
    make: Callable[[], TimestepPolicy], *, counts: Sequence[int] = COUNTS, metrics: Mapping[str, float] = METRICS
) -> None:
    """Times in the range, from their key alone; its state survives JSON and is all there is to remember.

    make: builds the policy; metrics: what it may observe after an iteration.
    """
    run_all(timesteps_checks(make, counts=counts, metrics=metrics))


def timesteps_checks(
    make: Callable[[], TimestepPolicy], *, counts: Sequence[int] = COUNTS, metrics: Mapping[str, float] = METRICS
) -> Iterator[Check]:
    """What a timestep policy promises, each over a short run in several ranges; a count it refuses is left out."""

    @cache
    def subject() -> _Subject:
        make()
        return _Subject(make, counts, metrics)

    return checks_of(subject, times, state_round_trip, random_state)


@dataclass(frozen=True)
class _Subject:
    make: Callable[[], TimestepPolicy]
    counts: Sequence[int]
    metrics: Mapping[str, float]

    def moments(self) -> Iterator[tuple[TimestepPolicy, TimestepContext, int, Draws]]:
        """A policy that has seen more and more, and what it is asked to draw next."""
        for t_min, t_max in ((0.0, 1.0), (0.3, 1.0), (0.25, 0.75)):
            policy = self.make()
            for iteration in range(ITERATIONS):
                sigmas = torch.linspace(1, 0, 21, dtype=torch.float64)
                context = TimestepContext(sigmas, t_min, t_max, 1.0, iteration, ITERATIONS)
                for count in self.counts:
                    with contextlib.suppress(UserError):
                        policy.check(context, count)
                        yield policy, context, count, Draws(0).at(iteration, count)
                policy.observe(self.metrics)


def times(s: _Subject) -> None:
    """Float64 [count] on the CPU, within the range."""
    for policy, context, count, draws in s.moments():
        found = policy.draw(count, context, draws)
        that(found.shape == (count,), f"{count} times are drawn, not {list(found.shape)}")
        that(found.dtype == torch.float64 and found.device.type == "cpu", "times are float64 on the CPU")
        low, high = context.t_min, context.t_max
        inside = bool(((found >= low) & (found <= high)).all())
        that(inside, f"times lie in [{low}, {high}]: {found.tolist()}")


def state_round_trip(s: _Subject) -> None:
    """A resumed run draws what the undisturbed one would have drawn."""
    for policy, context, count, draws in s.moments():
        restored = s.make()
        restored.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
        found = policy.draw(count, context, draws)
        equal(restored.draw(count, context, draws), found, "its state, as JSON, is all there is to remember")


def random_state(s: _Subject) -> None:
    """Draws come from the key."""
    with global_state_left_alone("a timestep policy"):
        for policy, context, count, draws in s.moments():
            policy.draw(count, context, draws)

"""Timestep policies: times within the bounds they name, from their key; state that survives JSON."""

from __future__ import annotations

import contextlib
import json
import math
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_kit.contracts._assertions import equal, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_timesteps", "timesteps_checks"]

COUNTS = (1, 2, 4)
METRICS = {"iteration": 1, "reward.mean": 0.5, "kl": 0.01, "grad_norm": 1.0}
RANGES = ((0.0, 1.0), (0.3, 1.0), (0.25, 0.75))
ITERATIONS = 7
"""Enough for a policy that measures every five."""


def check_timesteps(
    make: Callable[[], TimestepPolicy], *, counts: Sequence[int] = COUNTS, metrics: Mapping[str, float] = METRICS
) -> None:
    """Times within the policy's bounds, from their key alone; its state survives JSON and is all there is to remember.

    make: builds the policy; metrics: what it may observe after an iteration. A policy that measures is shown a made-up
    model whose samples in few steps component from many-step ones more with every iteration.
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

    return checks_of(subject, declares, bounds, times, logged, measurements, state_round_trip, random_state)


class _MadeUp(Probe):
    """Artifacts of few steps that grow with the iteration, halve with twice the steps, and are learned at low noise."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        artifact = 0.05 * (1 + self.iteration) / refine
        return self._clean(count) + artifact * normal(count, 2, 4, 4, seed=1)

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        artifact = (x0 - self._clean(len(x0))).double().square().flatten(1).mean(1)
        base = 1 + 0.1 * normal(len(x0), seed=2).double() + 0 * sigmas[:, None]
        return base - (1 - sigmas[:, None]) ** 2 * artifact, base

    def _clean(self, count: int) -> Tensor:
        return normal(count, 2, 4, 4)


@dataclass(frozen=True)
class _Moment:
    """A policy that has seen more and more; `before` is its state before it measured what it is about to draw."""

    policy: TimestepPolicy
    before: str
    context: TimestepContext
    probe: Probe
    counts: Sequence[int]

    def draw(self, policy: TimestepPolicy, count: int) -> Tensor:
        return policy.draw(count, self.context, Draws(0).at(self.context.iteration, count))


@dataclass(frozen=True)
class _Subject:
    make: Callable[[], TimestepPolicy]
    counts: Sequence[int]
    metrics: Mapping[str, float]

    def moments(self) -> Iterator[_Moment]:
        """The iterations of a run, as a trainer goes through them, after the measurement."""
        for t_min, t_max in RANGES:
            policy = self.make()
            for iteration in range(ITERATIONS):
                sigmas = torch.linspace(1, 0, 21, dtype=torch.float64)
                context = TimestepContext(sigmas, t_min, t_max, 1.0, iteration, ITERATIONS)
                before, probe = _saved(policy), _MadeUp(iteration)
                if policy.measures:
                    policy.measure(probe, context)
                counts = [count for count in self.counts if _takes(policy, context, count)]
                yield _Moment(policy, before, context, probe, counts)
                policy.observe(self.metrics)

    def restored(self, state: str) -> TimestepPolicy:
        """Another policy, in a state that was saved."""
        policy = self.make()
        policy.load_state_dict(json.loads(state))
        return policy


def _saved(policy: TimestepPolicy) -> str:
    return json.dumps(policy.state_dict(), allow_nan=False)


def _takes(policy: TimestepPolicy, context: TimestepContext, count: int) -> bool:
    with contextlib.suppress(UserError):
        policy.check(context, count)
        return True
    return False


def declares(s: _Subject) -> None:
    """`measures` says whether `measure` does something: the engine goes by it."""
    kind = type(s.make())
    own = kind.measure is not TimestepPolicy.measure
    that(kind.measures == own, f"measures is {own}, as it has {'a' if own else 'no'} `measure` of its own")


def bounds(s: _Subject) -> None:
    """Two numbers in order, within the range."""
    for moment in s.moments():
        if not moment.counts:
            continue
        low, high = _bounds(moment.policy, moment.context)
        t_min, t_max = moment.context.t_min, moment.context.t_max
        that(t_min <= low <= high <= t_max, f"bounds are in order and within [{t_min}, {t_max}]: ({low}, {high})")


def times(s: _Subject) -> None:
    """Float64 [count] on the CPU, within the bounds."""
    for moment in s.moments():
        for count in moment.counts:
            found = moment.draw(moment.policy, count)
            that(found.shape == (count,), f"{count} times are drawn, not {list(found.shape)}")
            that(found.dtype == torch.float64 and found.device.type == "cpu", "times are float64 on the CPU")
            low, high = _bounds(moment.policy, moment.context)
            inside = bool(((found >= low) & (found <= high)).all())
            that(inside, f"times lie in [{low}, {high}]: {found.tolist()}")


def logged(s: _Subject) -> None:
    """What goes into the log beside the bounds: names and finite numbers."""
    for moment in s.moments():
        found: Any = moment.policy.metrics()
        that(isinstance(found, Mapping), f"metrics are a mapping, not {found!r}")
        for name, value in found.items():
            that(isinstance(name, str), f"metrics have names, not {name!r}")
            that(name not in ("t_min", "t_max"), f"metric {name}: that name belongs to the bounds")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            that(number, f"metric {name} is a finite number, not {value!r}")


def measurements(s: _Subject) -> None:
    """Measured again from the state before: the same, so that an iteration that was stopped can be repeated."""
    if not s.make().measures:
        raise unittest.SkipTest("it does not measure the model")
    promise = "the same model measured from the same state gives the same"
    for moment in s.moments():
        again = s.restored(moment.before)
        again.measure(moment.probe, moment.context)
        that(_saved(again) == _saved(moment.policy), f"{promise} state: {_saved(moment.policy)}, {_saved(again)}")
        _same(again, moment, promise)


def state_round_trip(s: _Subject) -> None:
    """A resumed run draws what the undisturbed one would have drawn."""
    for moment in s.moments():
        _same(s.restored(_saved(moment.policy)), moment, "its state, as JSON, is all there is to remember")


def random_state(s: _Subject) -> None:
    """Draws come from the key, and what is measured from the model."""
    with global_state_left_alone("a timestep policy"):
        for moment in s.moments():
            for count in moment.counts:
                moment.draw(moment.policy, count)


def _bounds(policy: TimestepPolicy, context: TimestepContext) -> tuple[float, float]:
    low, high = policy.bounds(context)
    return low, high


def _same(other: TimestepPolicy, moment: _Moment, promise: str) -> None:
    """Both draw the same times and log the same numbers."""
    for count in moment.counts:
        equal(moment.draw(other, count), moment.draw(moment.policy, count), promise)
    that(dict(other.metrics()) == dict(moment.policy.metrics()), f"{promise}: metrics {dict(other.metrics())}")
    if moment.counts:
        that(other.bounds(moment.context) == moment.policy.bounds(moment.context), f"{promise}: bounds")

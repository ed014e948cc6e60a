"""Checks of timestep policies: sigmas within the declared bounds, drawn from the key, and a JSON-serializable state."""

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
DRAWN = 1000
"""Times whose weights are averaged."""
MEAN = 1e-3
"""Deviation of the mean weight from 1 that is not counted as an error, beyond what 5 standard errors allow."""
RESERVED = ("t_min", "t_max", "weight_min", "weight_max")
ITERATIONS = 7
"""Enough for a policy that measures every five iterations."""


def check_timesteps(
    make: Callable[[], TimestepPolicy], *, counts: Sequence[int] = COUNTS, metrics: Mapping[str, float] = METRICS
) -> None:
    """Check that sigmas lie within the policy's bounds and depend on the key alone, and that the state is complete.

    make: builds the policy; metrics: the metrics passed to `observe` after each iteration. A policy with `measures`
    measures a synthetic model, whose few-step samples differ more from many-step samples in every iteration. Raises
    AssertionError at the first violation.
    """
    run_all(timesteps_checks(make, counts=counts, metrics=metrics))


def timesteps_checks(
    make: Callable[[], TimestepPolicy], *, counts: Sequence[int] = COUNTS, metrics: Mapping[str, float] = METRICS
) -> Iterator[Check]:
    """Yield the checks of a timestep policy; each covers short runs in several ranges. Counts that the policy refuses
    are skipped."""

    @cache
    def subject() -> _Subject:
        make()
        return _Subject(make, counts, metrics)

    return checks_of(subject, declares, bounds, times, weights, logged, measurements, state_round_trip, random_state)


class _SyntheticProbe(Probe):
    """A probe whose artifacts grow with the iteration, halve with twice the steps, and are learned at low noise."""

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
    """A policy at one iteration of a run; `before` is its JSON state before the measurement of that iteration."""

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
        """Yield the iterations of a run, in the order of the trainer, each after its measurement."""
        for t_min, t_max in RANGES:
            policy = self.make()
            for iteration in range(ITERATIONS):
                sigmas = torch.linspace(1, 0, 21, dtype=torch.float64)
                context = TimestepContext(sigmas, t_min, t_max, 1.0, iteration, ITERATIONS)
                before, probe = _saved(policy), _SyntheticProbe(iteration)
                if policy.measures:
                    policy.measure(probe, context)
                counts = [count for count in self.counts if _accepts(policy, context, count)]
                yield _Moment(policy, before, context, probe, counts)
                policy.observe(self.metrics)

    def restored(self, state: str) -> TimestepPolicy:
        """Build another policy and load a saved state."""
        policy = self.make()
        policy.load_state_dict(json.loads(state))
        return policy


def _saved(policy: TimestepPolicy) -> str:
    return json.dumps(policy.state_dict(), allow_nan=False)


def _accepts(policy: TimestepPolicy, context: TimestepContext, count: int) -> bool:
    with contextlib.suppress(UserError):
        policy.check(context, count)
        return True
    return False


def declares(s: _Subject) -> None:
    """`measures` is set if and only if the class overrides `measure`; the engine relies on it."""
    kind = type(s.make())
    overrides = kind.measure is not TimestepPolicy.measure
    article = "its own" if overrides else "no"
    that(kind.measures == overrides, f"`measures` must be {overrides}, because the class has {article} `measure`")


def bounds(s: _Subject) -> None:
    """The bounds are in order and within the range."""
    for moment in s.moments():
        if not moment.counts:
            continue
        low, high = _bounds(moment.policy, moment.context)
        t_min, t_max = moment.context.t_min, moment.context.t_max
        valid = t_min <= low <= high <= t_max
        that(valid, f"bounds must be in order and within [{t_min}, {t_max}], got ({low}, {high})")


def times(s: _Subject) -> None:
    """Sigmas are float64 [count] on the CPU, within the bounds."""
    for moment in s.moments():
        for count in moment.counts:
            found = moment.draw(moment.policy, count)
            that(found.shape == (count,), f"`draw` must return shape [{count}], got {list(found.shape)}")
            that(found.dtype == torch.float64 and found.device.type == "cpu", "sigmas must be float64 on the CPU")
            low, high = _bounds(moment.policy, moment.context)
            inside = bool(((found >= low) & (found <= high)).all())
            that(inside, f"sigmas must lie in [{low}, {high}], got {found.tolist()}")


def weights(s: _Subject) -> None:
    """Weights of times are float64 [count], finite and not negative, each of its time alone, with mean 1."""
    for moment in s.moments():
        for count in moment.counts:
            found: Any = moment.policy.weights(moment.draw(moment.policy, count), moment.context)
            if found is None:
                continue
            that(isinstance(found, Tensor), f"`weights` must return None or a tensor, got {found!r}")
            that(found.shape == (count,), f"`weights` must return shape [{count}], got {list(found.shape)}")
            that(found.dtype == torch.float64 and found.device.type == "cpu", "weights must be float64 on the CPU")
            if count == max(moment.counts):
                _mean_weight(moment, count)


def _mean_weight(moment: _Moment, count: int) -> None:
    keys = [Draws(0).at("weights", i) for i in range(DRAWN // count)]
    drawn = torch.cat([moment.policy.draw(count, moment.context, key) for key in keys])
    found = moment.policy.weights(drawn, moment.context)
    assert found is not None
    valid = bool((found.isfinite() & (found >= 0)).all())
    that(valid, f"weights must be finite and not negative, got {found.min():.4g} to {found.max():.4g}")
    some = moment.policy.weights(drawn[:count], moment.context)
    assert some is not None
    equal(found[:count], some, "the weight of a time must not depend on the other times")
    mean, error = float(found.mean()), float(found.std()) / len(found) ** 0.5
    close = abs(mean - 1) <= 5 * error + MEAN
    that(close, f"the weights of {len(found)} times must have mean 1, got {mean:.4f} with error {error:.4f}")


def logged(s: _Subject) -> None:
    """`metrics` returns finite numbers by name."""
    for moment in s.moments():
        found: Any = moment.policy.metrics()
        that(isinstance(found, Mapping), f"`metrics` must return a mapping, got {found!r}")
        for name, value in found.items():
            that(isinstance(name, str), f"names of metrics must be strings, got {name!r}")
            that(name not in RESERVED, f"metric {name}: this name is reserved for the bounds and weights of times")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            that(number, f"metric {name} must be a finite number, got {value!r}")


def measurements(s: _Subject) -> None:
    """Measuring the same model from the same state is deterministic, so that a stopped iteration can be repeated."""
    if not s.make().measures:
        raise unittest.SkipTest("the policy does not measure the model")
    requirement = "measuring the same model from the same state must give the same"
    for moment in s.moments():
        again = s.restored(moment.before)
        again.measure(moment.probe, moment.context)
        that(_saved(again) == _saved(moment.policy), f"{requirement} state: {_saved(moment.policy)}, {_saved(again)}")
        _same(again, moment, f"{requirement} policy")


def state_round_trip(s: _Subject) -> None:
    """A policy restored from its JSON state draws the same sigmas, as in a resumed run."""
    for moment in s.moments():
        _same(s.restored(_saved(moment.policy)), moment, "a policy restored from its JSON state must be the same")


def random_state(s: _Subject) -> None:
    """Draws and measurements do not use a global random generator."""
    with global_state_left_alone("a timestep policy"):
        for moment in s.moments():
            for count in moment.counts:
                moment.draw(moment.policy, count)


def _bounds(policy: TimestepPolicy, context: TimestepContext) -> tuple[float, float]:
    low, high = policy.bounds(context)
    return low, high


def _same(other: TimestepPolicy, moment: _Moment, requirement: str) -> None:
    """Raise AssertionError unless both policies have the same draws, weights, metrics and bounds."""
    for count in moment.counts:
        drawn = moment.draw(moment.policy, count)
        equal(moment.draw(other, count), drawn, requirement)
        mine, theirs = (policy.weights(drawn, moment.context) for policy in (moment.policy, other))
        that((mine is None) == (theirs is None), f"{requirement}: weights {mine}, {theirs}")
        if mine is not None and theirs is not None:
            equal(theirs, mine, f"{requirement}: weights")
    that(dict(other.metrics()) == dict(moment.policy.metrics()), f"{requirement}: metrics {dict(other.metrics())}")
    if moment.counts:
        that(other.bounds(moment.context) == moment.policy.bounds(moment.context), f"{requirement}: bounds")

"""`check_weighting`, `check_timesteps` and `check_objective` pass sound components and find each broken promise."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, MemberLoss, Objective, Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.types import Predictions
from dgpo_kit.contracts import check_objective, check_timesteps, check_weighting, timesteps_checks
from dgpo_schemas.sections.training import ObjectiveSection

Check = Callable[[], None]
Found = Callable[[str, Check], None]


class Weighs(AdvantageWeighting):
    """|A|, changed by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda a: a.abs(), cancels: bool = True) -> None:
        super().__init__(None)
        self.function = function
        self.cancels_partition = cancels  # type: ignore[misc]

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        return self.function(advantages)


@pytest.mark.parametrize(
    ("promise", "check"),
    [
        ("one weight a member", lambda: check_weighting(Weighs(lambda a: a.abs().sum()))),
        ("finite and >= 0", lambda: check_weighting(Weighs(lambda a: a))),
        ("finite and >= 0", lambda: check_weighting(Weighs(lambda a: 1 / (a - a)))),
        ("sum to 0 in every group", lambda: check_weighting(Weighs(lambda a: a.square()))),
        (
            "whatever its place",
            lambda: check_weighting(Weighs(lambda a: torch.arange(len(a)) * a.abs(), cancels=False)),
        ),
        ("left alone", lambda: check_weighting(Weighs(lambda a: a.abs_()))),
        ("random state of torch", lambda: check_weighting(Weighs(lambda a: a.abs() + 0 * torch.rand(())))),
    ],
)
def test_weightings(assert_found: Found, promise: str, check: Check) -> None:
    assert_found(promise, check)


def test_a_sound_weighting_passes() -> None:
    check_weighting(Weighs())


class Learns(TimestepPolicy):
    """Uniform times above a bound that each iteration raises."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.seen = 0.0

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        low = context.t_min + (context.t_max - context.t_min) * self.seen / (1 + self.seen)
        return low + (context.t_max - low) * draws.uniform(count)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.seen += metrics["kl"]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_policy_that_learns_passes() -> None:
    check_timesteps(Learns)


def policies() -> list[tuple[str, Check]]:
    class Forgets(Learns):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": 0.0}

    class KeepsTensors(Learns):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": torch.tensor(self.seen)}

    class Single(Learns):
        def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
            return super().draw(count, context, draws).float()

    class TooFew(Learns):
        def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
            return super().draw(1, context, draws)

    class Beyond(Learns):
        def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
            return draws.uniform(count)

    class Counts(Learns):
        """Its draws depend on how many there were."""

        drawn = 0

        def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
            self.drawn += 1
            return super().draw(count, context, draws.at(self.drawn))

    expected: list[tuple[type[Learns], str]] = [
        (Forgets, "its state, as JSON, is all there is to remember"),
        (KeepsTensors, "not JSON serializable"),
        (Single, "times are float64 on the CPU"),
        (TooFew, r"2 times are drawn, not \[1\]"),
        (Beyond, r"times lie in \[0\.3, 1\.0\]"),
        (Counts, "its state, as JSON, is all there is to remember"),
    ]

    def run(kind: type[Learns]) -> Check:
        return lambda: check_timesteps(kind)

    return [(promise, run(kind)) for kind, promise in expected]


@pytest.mark.parametrize(("promise", "check"), policies())
def test_timestep_policies(assert_found: Found, promise: str, check: Check) -> None:
    assert_found(promise, check)


class Measures(TimestepPolicy):
    """Uniform times above half of what few steps do to samples, smoothed; sound until a subclass breaks it."""

    measures = True

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.found = 0.0

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        error, base = probe.errors(probe.samples(4), torch.tensor([0.1, 0.9], dtype=torch.float64))
        distance = float((probe.samples(4) - probe.samples(4, refine=2)).square().mean().sqrt())
        self.found = 0.5 * self.found + 0.5 * distance + 0.01 * float((base - error).mean())

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        return context.t_min + (context.t_max - context.t_min) * self.found / (1 + self.found), context.t_max

    def metrics(self) -> Mapping[str, float]:
        return {"found": self.found}

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        low, high = self.bounds(context)
        return low + (high - low) * draws.uniform(count)

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.found = state["found"]


def named(kind: type[TimestepPolicy]) -> dict[str, Check]:
    """The checks of a policy."""
    return {check.name: check.run for check in timesteps_checks(lambda: kind(None))}


def test_a_policy_that_measures_passes() -> None:
    checks = named(Measures)
    assert list(checks) == [
        "builds", "declares", "bounds", "times", "logged", "measurements", "state-round-trip", "random-state",
    ]  # fmt: skip
    for run in checks.values():
        run()


def test_only_a_policy_that_measures_is_shown_a_model() -> None:
    class Notices(Learns):
        measures = False

        def measure(self, probe: Probe, context: TimestepContext) -> None:
            raise AssertionError("shown")

    checks = named(Notices)
    with pytest.raises(AssertionError, match="measures is True, as it has a `measure` of its own"):
        checks["declares"]()
    checks["times"]()
    with pytest.raises(unittest.SkipTest, match="it does not measure the model"):
        checks["measurements"]()


class Idle(Learns):
    measures = True


class ForgetsTheModel(Measures):
    def state_dict(self) -> dict[str, Any]:
        return {"found": round(self.found, 3)}


class HoldsBack(Measures):
    """What it found is in force only in the next iteration, which its state does not know."""

    next = 0.0

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        self.found = self.next
        self.next = float((probe.samples(4) - probe.samples(4, refine=2)).square().mean().sqrt())


class LogsWhatIsLost(Measures):
    seen = 0

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        super().measure(probe, context)
        self.seen += 1

    def metrics(self) -> Mapping[str, float]:
        return {"seen": self.seen}


class Rolls(Measures):
    """Measures at random."""

    def measure(self, probe: Probe, context: TimestepContext) -> None:
        self.found = float(torch.rand(()))


class Upward(Measures):
    """Does not mind the range."""

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        return self.found, 1.0


class Backward(Measures):
    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        return context.t_max, context.t_min


class BelowItsBounds(Measures):
    """Within the range, but not within what it tells."""

    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        return context.t_min + (context.t_max - context.t_min) * draws.uniform(count)


def logs(value: Any, name: Any = "found") -> type[Measures]:
    class Logs(Measures):
        def metrics(self) -> Any:
            return {name: value}

    return Logs


class ListsItsMetrics(Measures):
    def metrics(self) -> Any:
        return [self.found]


@pytest.mark.parametrize(
    ("kind", "name", "promise"),
    [
        (Idle, "declares", "measures is False, as it has no `measure` of its own"),
        (ForgetsTheModel, "measurements", "measured from the same state gives the same: Tensor-likes are not equal"),
        (ForgetsTheModel, "state-round-trip", "its state, as JSON, is all there is to remember"),
        (HoldsBack, "measurements", "measured from the same state gives the same state"),
        (LogsWhatIsLost, "state-round-trip", "its state, as JSON, is all there is to remember: metrics"),
        (Rolls, "measurements", "measured from the same state gives the same state"),
        (Rolls, "random-state", "a timestep policy leaves the global random state of torch alone"),
        (Upward, "bounds", r"bounds are in order and within \[0\.3, 1\.0\]: \(0\.01"),
        (Backward, "bounds", r"bounds are in order and within \[0\.0, 1\.0\]: \(1\.0, 0\.0\)"),
        (BelowItsBounds, "times", r"times lie in \[0\.\d+, 1\.0\]"),
        (ListsItsMetrics, "logged", r"metrics are a mapping, not \["),
        (logs(float("nan")), "logged", "metric found is a finite number, not nan"),
        (logs(torch.tensor(1.0)), "logged", "metric found is a finite number, not tensor"),
        (logs(True), "logged", "metric found is a finite number, not True"),
        (logs(1.0, 7), "logged", "metrics have names, not 7"),
        (logs(1.0, "t_min"), "logged", "metric t_min: that name belongs to the bounds"),
    ],
)
def test_policies_that_measure(assert_found: Found, kind: type[Measures], name: str, promise: str) -> None:
    assert_found(promise, named(kind)[name])


class Weighted(Objective):
    """Reward-weighted denoising; easy to break."""

    needs_statistic = True
    needs_reference = False
    needs_old = False
    skips_zero_weights = True

    def __init__(self) -> None:
        super().__init__(ObjectiveSection(), None)

    def error(self, p: Predictions) -> Tensor:
        return (p.velocity - p.target).square().flatten(1).mean(1)

    def statistic(self, predictions: Predictions) -> Tensor:
        return predictions.signed_weights * self.error(predictions).detach()

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        assert statistic is not None
        error = self.error(predictions)
        return MemberLoss(predictions.signed_weights * error * torch.sigmoid(statistic), {"dsm": error.detach()})


def test_a_sound_objective_passes() -> None:
    check_objective(Weighted())


def objectives() -> list[tuple[str, Check]]:
    class Mean(Weighted):
        def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
            found = super().loss(predictions, statistic)
            return MemberLoss(found.loss.mean(), found.metrics)

    class WithGradient(Weighted):
        def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
            found = super().loss(predictions, statistic)
            return MemberLoss(found.loss, {"loss": found.loss})

    class Coupled(Weighted):
        def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
            found = super().loss(predictions, statistic)
            return MemberLoss(found.loss * found.loss.detach().mean(), found.metrics)

    class PullsAll(Weighted):
        def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
            found = super().loss(predictions, statistic)
            return MemberLoss(found.loss + self.error(predictions), found.metrics)

    class Attached(Weighted):
        def statistic(self, predictions: Predictions) -> Tensor:
            return predictions.signed_weights * self.error(predictions)

    class CountsAll(Weighted):
        def statistic(self, predictions: Predictions) -> Tensor:
            return self.error(predictions).detach()

    expected: list[tuple[type[Weighted], str]] = [
        (Mean, r"one loss a member: \[4\], not \[\]"),
        (WithGradient, "metric loss has no gradient"),
        (Coupled, "a member's loss is its own"),
        (PullsAll, "a member of weight 0 has no gradient"),
        (Attached, "shares of the statistic have no gradient"),
        (CountsAll, "a member of weight 0 adds nothing to the statistic"),
    ]

    def run(kind: type[Weighted]) -> Check:
        return lambda: check_objective(kind())

    return [(promise, run(kind)) for kind, promise in expected]


@pytest.mark.parametrize(("promise", "check"), objectives())
def test_objectives(assert_found: Found, promise: str, check: Check) -> None:
    assert_found(promise, check)

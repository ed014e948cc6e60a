"""`check_weighting`, `check_timesteps` and `check_objective` pass sound components and find each broken requirement."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, MemberLoss, Objective, Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.types import Predictions, ScoredGroups
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
    ("requirement", "check"),
    [
        (r"weights must have shape \[G\]", lambda: check_weighting(Weighs(lambda a: a.abs().sum()))),
        ("must be finite and >= 0", lambda: check_weighting(Weighs(lambda a: a))),
        ("must be finite and >= 0", lambda: check_weighting(Weighs(lambda a: 1 / (a - a)))),
        ("must sum to 0 in every group", lambda: check_weighting(Weighs(lambda a: a.square()))),
        (
            "must not depend on the order of the members",
            lambda: check_weighting(Weighs(lambda a: torch.arange(len(a)) * a.abs(), cancels=False)),
        ),
        ("must not be modified", lambda: check_weighting(Weighs(lambda a: a.abs_()))),
        ("random state of torch", lambda: check_weighting(Weighs(lambda a: a.abs() + 0 * torch.rand(())))),
    ],
)
def test_weightings(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


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


class WeightedTimes(Learns):
    """Uniform times weighted by sigma over its mean, or by another function of times, low and high."""

    function: Callable[[Tensor, float, float], Any] = staticmethod(lambda s, low, high: s / ((low + high) / 2))

    def weights(self, sigmas: Tensor, context: TimestepContext) -> Any:
        low = context.t_min + (context.t_max - context.t_min) * self.seen / (1 + self.seen)
        return type(self).function(sigmas, low, context.t_max)


def weighted(function: Callable[[Tensor, float, float], Any]) -> type[WeightedTimes]:
    return type("Changed", (WeightedTimes,), {"function": staticmethod(function)})


def test_a_policy_with_weights_passes() -> None:
    check_timesteps(WeightedTimes)


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
        (Forgets, "restored from its JSON state must be the same"),
        (KeepsTensors, "not JSON serializable"),
        (Single, "sigmas must be float64 on the CPU"),
        (TooFew, r"`draw` must return shape \[2\], got \[1\]"),
        (Beyond, r"sigmas must lie in \[0\.3, 1\.0\]"),
        (Counts, "restored from its JSON state must be the same"),
        (weighted(lambda s, low, high: s.tolist()), "`weights` must return None or a tensor"),
        (weighted(lambda s, low, high: s[:1]), r"`weights` must return shape \[2\], got \[1\]"),
        (weighted(lambda s, low, high: s.float()), "weights must be float64 on the CPU"),
        (weighted(lambda s, low, high: 2 * s - 0.5), "finite and not negative"),
        (weighted(lambda s, low, high: 1 / (s - s)), "finite and not negative"),
        (weighted(lambda s, low, high: s / s.mean()), "must not depend on the other times"),
        (weighted(lambda s, low, high: s), r"1000 times must have mean 1, got 0\.4"),
    ]

    def run(kind: type[Learns]) -> Check:
        return lambda: check_timesteps(kind)

    return [(requirement, run(kind)) for kind, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), policies())
def test_timestep_policies(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


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
        "builds", "declares", "bounds", "times", "weights", "logged", "measurements", "state-round-trip",
        "random-state",
    ]  # fmt: skip
    for run in checks.values():
        run()


def test_only_a_policy_that_measures_is_shown_a_model() -> None:
    class Notices(Learns):
        measures = False

        def measure(self, probe: Probe, context: TimestepContext) -> None:
            raise AssertionError("shown")

    checks = named(Notices)
    with pytest.raises(AssertionError, match="`measures` must be True, because the class has its own `measure`"):
        checks["declares"]()
    checks["times"]()
    with pytest.raises(unittest.SkipTest, match="the policy does not measure the model"):
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
    ("kind", "name", "requirement"),
    [
        (Idle, "declares", "`measures` must be False, because the class has no `measure`"),
        (ForgetsTheModel, "measurements", "from the same state must give the same policy: Tensor-likes are not equal"),
        (ForgetsTheModel, "state-round-trip", "restored from its JSON state must be the same"),
        (HoldsBack, "measurements", "from the same state must give the same state"),
        (LogsWhatIsLost, "state-round-trip", "restored from its JSON state must be the same: metrics"),
        (Rolls, "measurements", "from the same state must give the same state"),
        (Rolls, "random-state", "a timestep policy must not change the global random state of torch"),
        (Upward, "bounds", r"bounds must be in order and within \[0\.3, 1\.0\], got \(0\.01"),
        (Backward, "bounds", r"bounds must be in order and within \[0\.0, 1\.0\], got \(1\.0, 0\.0\)"),
        (BelowItsBounds, "times", r"sigmas must lie in \[0\.\d+, 1\.0\]"),
        (ListsItsMetrics, "logged", r"`metrics` must return a mapping, got \["),
        (logs(float("nan")), "logged", "metric found must be a finite number, got nan"),
        (logs(torch.tensor(1.0)), "logged", "metric found must be a finite number, got tensor"),
        (logs(True), "logged", "metric found must be a finite number, got True"),
        (logs(1.0, 7), "logged", "names of metrics must be strings, got 7"),
        (logs(1.0, "t_min"), "logged", "metric t_min: this name is reserved for the bounds"),
    ],
)
def test_policies_that_measure(assert_found: Found, kind: type[Measures], name: str, requirement: str) -> None:
    assert_found(requirement, named(kind)[name])


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

    class ScalesGroups(Weighted):
        def kl_scales(self, groups: ScoredGroups) -> Tensor | None:
            return groups.rewards.mean(1)

    class ScalesBelowZero(Weighted):
        def kl_scales(self, groups: ScoredGroups) -> Tensor | None:
            return -groups.rewards.abs()

    expected: list[tuple[type[Weighted], str]] = [
        (ScalesGroups, r"kl_scales must have shape \[g, G\] \[2, 4\], got \[2\]"),
        (ScalesBelowZero, "kl_scales must be finite and >= 0"),
        (Mean, r"loss must have shape \[B\] \[4\], got \[\]"),
        (WithGradient, "metric loss must not require a gradient"),
        (Coupled, "loss of a member must not depend on the other members"),
        (PullsAll, "the gradient of a member of weight 0 must be 0"),
        (Attached, "`statistic` must not require a gradient"),
        (CountsAll, "the statistic of a member of weight 0 must be 0"),
    ]

    def run(kind: type[Weighted]) -> Check:
        return lambda: check_objective(kind())

    return [(requirement, run(kind)) for kind, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), objectives())
def test_objectives(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)

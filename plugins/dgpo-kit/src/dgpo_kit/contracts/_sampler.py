"""Checks of samplers: the schedule, the samples and the path."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise, product

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler, VelocityFn
from dgpo_core.draws import Draws
from dgpo_core.flow.paths import has_distribution
from dgpo_core.flow.schedules import finish
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import SampleResult, Schedule
from dgpo_kit.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_sampler", "sampler_checks"]

SIZE = 3
ALL = slice(0, SIZE)
SCHEDULES = (Schedule(), Schedule(shift=3.0), Schedule(2.0, "even", terminal=0.02), Schedule(grid="even", first=0.92))


def check_sampler(
    sampler: Sampler, steps: Sequence[int] = (1, 2, 5), schedules: Sequence[Schedule] = SCHEDULES
) -> None:
    """Check sigmas, path, batch independence, and that a deterministic sampler is exact for a constant velocity.

    Raises AssertionError at the first violation.
    """
    run_all(sampler_checks(lambda: sampler, steps, schedules))


def sampler_checks(
    make: Callable[[], Sampler], steps: Sequence[int] = (1, 2, 5), schedules: Sequence[Schedule] = SCHEDULES
) -> Iterator[Check]:
    """Yield the checks of a sampler; each covers all combinations of `steps` and `schedules`."""

    @cache
    def subject() -> list[_Case]:
        sampler = make()
        return [_Case(sampler, *case) for case in product(steps, schedules)]

    return checks_of(
        subject,
        schedule,
        terminal,
        samples,
        determinism,
        batch_invariance,
        empty_batch,
        path,
        step_distribution,
        straight_flow,
        random_state,
    )


@dataclass(frozen=True)
class _Case:
    """A sampler with a nonlinear velocity, noise [3, 2, 3, 5] and one key per sample."""

    sampler: Sampler
    steps: int
    schedule: Schedule
    noise: Tensor = field(default_factory=lambda: normal(SIZE, 2, 3, 5))

    def sigmas(self) -> Tensor:
        return self.sampler.sigmas(self.steps, self.schedule)

    def sample(self, rows: slice = ALL, *, keep_path: bool = False) -> SampleResult:
        return self.sample_from(self.noise[rows].clone(), self.velocity, rows, keep_path=keep_path)

    def sample_from(
        self, noise: Tensor, velocity: VelocityFn, rows: slice = ALL, *, keep_path: bool = False
    ) -> SampleResult:
        draws = [Draws(0).at("sampler", i) for i in range(SIZE)][rows]
        return self.sampler.sample(
            velocity, noise, steps=self.steps, schedule=self.schedule, draws=draws, keep_path=keep_path
        )

    def velocity(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        like = self.noise
        same = x_sigma.shape[1:] == like.shape[1:] and x_sigma.dtype == like.dtype
        that(same, "states must have the shape and dtype of the noise")
        that(sigma.dim() == 0 and 0 <= float(sigma) <= 1, "sigma must be a 0-d tensor in [0, 1]")
        return torch.tanh(1.5 * x_sigma + sigma)


def schedule(cases: Sequence[_Case]) -> None:
    """Sigmas are float64 [steps + 1] on the CPU, descending from at most the model's first sigma to 0."""
    for case in cases:
        sigmas, steps = case.sigmas(), case.steps
        that(
            sigmas.shape == (steps + 1,), f"sigmas must have shape [steps + 1] [{steps + 1}], got {list(sigmas.shape)}"
        )
        that(sigmas.dtype == torch.float64 and sigmas.device.type == "cpu", "sigmas must be float64 on the CPU")
        that(all(a > b for a, b in pairwise(sigmas.tolist())), f"sigmas must descend, got {sigmas.tolist()}")
        that(sigmas[-1] == 0 and sigmas[0] <= 1, f"sigmas must go from at most 1 to 0, got {sigmas.tolist()}")
        first = finish(torch.tensor([case.schedule.first], dtype=torch.float64), replace(case.schedule, terminal=None))
        that(sigmas[0] <= first[0] + 1e-12, "the first sigma must be at most the model's first sigma, shifted")


def samples(cases: Sequence[_Case]) -> None:
    """x0 has the shape and dtype of the noise, which is not modified; there is no path without `keep_path`."""
    for case in cases:
        noise = case.noise.clone()
        sampled = case.sample_from(noise, case.velocity)
        same = sampled.x0.shape == noise.shape and sampled.x0.dtype == noise.dtype
        that(same, "x0 must have the shape and dtype of the noise")
        equal(noise, case.noise, "the noise must not be modified")
        that(sampled.path is None, "`path` must be None without `keep_path`")


def determinism(cases: Sequence[_Case]) -> None:
    """Samples depend on noise and keys alone."""
    for case in cases:
        equal(case.sample().x0, case.sample().x0, "the same noise and keys must give the same sample")


def batch_invariance(cases: Sequence[_Case]) -> None:
    """Samples do not depend on the batch."""
    for case in cases:
        x0 = case.sample().x0
        for i in range(SIZE):
            alone = case.sample(slice(i, i + 1)).x0[0]
            close(alone, x0[i], "a sample must not depend on the other samples of the batch", 1e-5)


def empty_batch(cases: Sequence[_Case]) -> None:
    """An empty batch returns no samples."""
    for case in cases:
        that(len(case.sample(slice(0, 0)).x0) == 0, "an empty batch must return no samples")


def terminal(cases: Sequence[_Case]) -> None:
    """The last sigma before 0 is the schedule's terminal sigma."""
    for case in cases:
        sigmas, expected = case.sigmas(), case.schedule.terminal
        if expected is not None and case.steps > 1:
            last = float(sigmas[-2])
            that(abs(last - expected) < 1e-9, f"the last sigma before 0 must be `terminal` {expected:g}, got {last:g}")


def path(cases: Sequence[_Case]) -> None:
    """The path has all states from noise to x0 and, for random samplers, the log-probabilities of the steps."""
    for case in cases:
        _check_path(case, case.sample(keep_path=True), case.sample().x0, case.sigmas())


def _check_path(case: _Case, result: SampleResult, x0: Tensor, sigmas: Tensor) -> None:
    that(result.path is not None, "`path` must not be None with `keep_path`")
    assert result.path is not None
    steps, states = case.steps, result.path.states
    equal(result.x0, x0, "`keep_path` must not change the samples")
    that(states.shape == (steps + 1, *x0.shape), f"the path must have {steps + 1} states, got {len(states)}")
    equal(states[0], case.noise, "the path must start at the noise")
    equal(states[-1], x0, "the path must end at x0")
    equal(result.path.sigmas.double().cpu(), sigmas, "the path must have the sigmas of the schedule")
    log_probs = result.path.log_probs
    if case.sampler.deterministic:
        that(log_probs is None, "`log_probs` must be None for a deterministic sampler")
    else:
        that(log_probs is not None, "a random sampler must return the `log_probs` of its steps")
        assert log_probs is not None
        that(log_probs.shape == (steps, SIZE), f"`log_probs` must have shape [steps, B], got {list(log_probs.shape)}")


def step_distribution(cases: Sequence[_Case]) -> None:
    """States and log-probabilities of the path agree with `step_distribution`."""
    for case in cases:
        if not has_distribution(case.sampler):
            raise unittest.SkipTest(
                "the sampler has no `step_distribution`, which only objectives on its steps require"
            )
        found = case.sample(keep_path=True).path
        assert found is not None
        assert found.log_probs is not None
        for k, (sigma, after) in enumerate(pairwise(case.sigmas().tolist())):
            x, next_x = found.states[k], found.states[k + 1]
            mean, std = case.sampler.step_distribution(x, case.velocity(x, torch.tensor(sigma)), sigma, after)
            valid = mean.shape == x.shape and std >= 0
            that(valid, "`step_distribution` must return a mean of the state's shape and a std >= 0")
            if std == 0:
                close(next_x, mean, "a step with std 0 must return the mean", 1e-5)
                continue
            that(((next_x - mean) / std).abs().max() < 6, "a step must be drawn from `step_distribution`")
            log_prob = gaussian_log_prob(next_x, mean, std)
            close(found.log_probs[k], log_prob, "`log_probs` must be those of `step_distribution`", 1e-3)
            if found.means is not None:
                close(found.means[k], mean, "`means` must be those of `step_distribution`", 1e-5)


def straight_flow(cases: Sequence[_Case]) -> None:
    """A deterministic sampler of any order is exact for a constant velocity."""
    straight = normal(SIZE, 2, 3, 5, seed=1)
    for case in cases:
        if not case.sampler.deterministic:
            raise unittest.SkipTest("the samples are random")
        found = case.sample_from(case.noise, lambda x_sigma, sigma: straight).x0
        expected = case.noise - float(case.sigmas()[0]) * straight
        close(found, expected, "x0 must be exact for a constant velocity", 1e-5)


def random_state(cases: Sequence[_Case]) -> None:
    """Samples do not use a global random generator."""
    for case in cases:
        with global_state_left_alone("a sampler"):
            case.sample()

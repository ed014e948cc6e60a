"""Samplers: their schedule, their samples and their path."""

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
    """Its times; exact on a straight flow if deterministic; samples independent of their batch; its path."""
    run_all(sampler_checks(lambda: sampler, steps, schedules))


def sampler_checks(
    make: Callable[[], Sampler], steps: Sequence[int] = (1, 2, 5), schedules: Sequence[Schedule] = SCHEDULES
) -> Iterator[Check]:
    """What a sampler promises, each for every combination of `steps` and `schedules`."""

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
    """A sampler at work: a velocity that bends, noise [3, 2, 3, 5] and a key for each sample."""

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
        that(x_sigma.shape[1:] == like.shape[1:] and x_sigma.dtype == like.dtype, "states are shaped like the noise")
        that(sigma.dim() == 0 and 0 <= float(sigma) <= 1, "sigma is a 0-d tensor in [0, 1]")
        return torch.tanh(1.5 * x_sigma + sigma)


def schedule(cases: Sequence[_Case]) -> None:
    """Times float64 [steps + 1] on the CPU, descending from no higher than the model's first one to 0."""
    for case in cases:
        sigmas, steps = case.sigmas(), case.steps
        that(sigmas.shape == (steps + 1,), f"{steps} steps visit {steps + 1} times, not {tuple(sigmas.shape)}")
        that(sigmas.dtype == torch.float64 and sigmas.device.type == "cpu", "times are float64 on the CPU")
        that(all(a > b for a, b in pairwise(sigmas.tolist())), "times descend")
        that(sigmas[-1] == 0 and sigmas[0] <= 1, "times go from at most 1 to 0")
        first = finish(torch.tensor([case.schedule.first], dtype=torch.float64), replace(case.schedule, terminal=None))
        that(sigmas[0] <= first[0] + 1e-12, "times begin no higher than the model's first one, shifted")


def samples(cases: Sequence[_Case]) -> None:
    """x0 is shaped like the noise, which is left alone; a path only if it is asked for."""
    for case in cases:
        noise = case.noise.clone()
        sampled = case.sample_from(noise, case.velocity)
        that(sampled.x0.shape == noise.shape and sampled.x0.dtype == noise.dtype, "x0 is shaped like the noise")
        equal(noise, case.noise, "the noise is left alone")
        that(sampled.path is None, "there is no path unless it is asked for")


def determinism(cases: Sequence[_Case]) -> None:
    """Noise and keys decide."""
    for case in cases:
        equal(case.sample().x0, case.sample().x0, "the same noise and keys give the same sample")


def batch_invariance(cases: Sequence[_Case]) -> None:
    """Any split of a batch gives the same samples."""
    for case in cases:
        x0 = case.sample().x0
        for i in range(SIZE):
            close(case.sample(slice(i, i + 1)).x0[0], x0[i], "a sample does not depend on the others", 1e-5)


def empty_batch(cases: Sequence[_Case]) -> None:
    """Nothing in, nothing out."""
    for case in cases:
        that(len(case.sample(slice(0, 0)).x0) == 0, "no noise gives no samples")


def terminal(cases: Sequence[_Case]) -> None:
    """The last time before 0 is the one that the model asks for."""
    for case in cases:
        sigmas, wanted = case.sigmas(), case.schedule.terminal
        if wanted is not None and case.steps > 1:
            that(abs(float(sigmas[-2]) - wanted) < 1e-9, f"the last time before 0 is the model's terminal {wanted:g}")


def path(cases: Sequence[_Case]) -> None:
    """The states from noise to x0, with the probabilities of random steps."""
    for case in cases:
        _check_path(case, case.sample(keep_path=True), case.sample().x0, case.sigmas())


def _check_path(case: _Case, result: SampleResult, x0: Tensor, sigmas: Tensor) -> None:
    that(result.path is not None, "the path is there when it is asked for")
    assert result.path is not None
    steps, states = case.steps, result.path.states
    equal(result.x0, x0, "keeping the path changes nothing")
    that(states.shape == (steps + 1, *x0.shape), f"the path has {steps + 1} states")
    equal(states[0], case.noise, "the path starts at the noise")
    equal(states[-1], x0, "the path ends at x0")
    equal(result.path.sigmas.double().cpu(), sigmas, "the path has the schedule's times")
    log_probs = result.path.log_probs
    if case.sampler.deterministic:
        that(log_probs is None, "a deterministic sampler has no probabilities")
    else:
        that(log_probs is not None, "a random sampler gives the probabilities of its steps")
        assert log_probs is not None
        that(log_probs.shape == (steps, SIZE), "probabilities are [steps, B]")


def step_distribution(cases: Sequence[_Case]) -> None:
    """Each state is drawn from what a random sampler says of the step, and so are the path's probabilities."""
    for case in cases:
        if not has_distribution(case.sampler):
            raise unittest.SkipTest(
                "it does not say how its steps are distributed; objectives that learn from them ask"
            )
        found = case.sample(keep_path=True).path
        assert found is not None
        assert found.log_probs is not None
        for k, (sigma, after) in enumerate(pairwise(case.sigmas().tolist())):
            x, next_x = found.states[k], found.states[k + 1]
            mean, std = case.sampler.step_distribution(x, case.velocity(x, torch.tensor(sigma)), sigma, after)
            that(mean.shape == x.shape and std >= 0, "a step has a mean shaped like the state, and a std of at least 0")
            if std == 0:
                close(next_x, mean, "a step of std 0 is its mean", 1e-5)
                continue
            that(((next_x - mean) / std).abs().max() < 6, "a step is drawn from the distribution that is stated")
            stated = gaussian_log_prob(next_x, mean, std)
            close(found.log_probs[k], stated, "probabilities are those of the distribution that is stated", 1e-3)


def straight_flow(cases: Sequence[_Case]) -> None:
    """A deterministic sampler is exact where the velocity is constant, whatever its order."""
    straight = normal(SIZE, 2, 3, 5, seed=1)
    for case in cases:
        if not case.sampler.deterministic:
            raise unittest.SkipTest("its samples are random")
        found = case.sample_from(case.noise, lambda x_sigma, sigma: straight).x0
        expected = case.noise - float(case.sigmas()[0]) * straight
        close(found, expected, "where the velocity is constant, x0 is exact", 1e-5)


def random_state(cases: Sequence[_Case]) -> None:
    """Draws come from the keys."""
    for case in cases:
        with global_state_left_alone("a sampler"):
            case.sample()

"""Samplers: their schedule, their samples and their path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler
from dgpo_core.draws import Draws
from dgpo_core.testing.contracts._assertions import close, equal, global_state_left_alone, normal, that
from dgpo_core.types import SampleResult

__all__ = ["check_sampler"]


def check_sampler(sampler: Sampler, steps: Sequence[int] = (1, 2, 5), shifts: Sequence[float] = (1.0, 3.0)) -> None:
    """Its schedule; exact on a straight flow if deterministic; samples independent of their batch; its path."""
    for count in steps:
        for shift in shifts:
            with global_state_left_alone("a sampler"):
                _check_schedule(sampler, count, shift)
                _check_samples(sampler, count, shift)


def _check_schedule(sampler: Sampler, steps: int, shift: float) -> None:
    sigmas = sampler.sigmas(steps, shift)
    that(sigmas.shape == (steps + 1,), f"{steps} steps visit {steps + 1} times, not {tuple(sigmas.shape)}")
    that(sigmas.dtype == torch.float64 and sigmas.device.type == "cpu", "times are float64 on the CPU")
    that(all(a > b for a, b in pairwise(sigmas.tolist())), "times descend")
    that(sigmas[-1] == 0 and sigmas[0] <= 1, "times go from at most 1 to 0")


def _check_samples(sampler: Sampler, steps: int, shift: float) -> None:
    size = 3
    noise = normal(size, 2, 3, 5)
    draws = [Draws(0).at("sampler", i) for i in range(size)]

    def velocity(x_sigma: Tensor, sigma: Tensor) -> Tensor:
        that(x_sigma.shape[1:] == noise.shape[1:] and x_sigma.dtype == noise.dtype, "states are shaped like the noise")
        that(sigma.dim() == 0 and 0 <= float(sigma) <= 1, "sigma is a 0-d tensor in [0, 1]")
        return torch.tanh(1.5 * x_sigma + sigma)

    def sample(rows: slice, keep_path: bool = False) -> SampleResult:
        return sampler.sample(velocity, noise[rows], steps=steps, shift=shift, draws=draws[rows], keep_path=keep_path)

    kept = noise.clone()
    everything = slice(0, size)
    x0 = sample(everything).x0
    that(x0.shape == noise.shape and x0.dtype == noise.dtype, "x0 is shaped like the noise")
    equal(noise, kept, "the noise is left alone")
    equal(sample(everything).x0, x0, "the same noise and keys give the same sample")
    for i in range(size):
        close(sample(slice(i, i + 1)).x0[0], x0[i], "a sample does not depend on the others", 1e-5)
    that(len(sample(slice(0, 0)).x0) == 0, "no noise gives no samples")
    _check_path(sampler, sample(everything, keep_path=True), noise, x0, sampler.sigmas(steps, shift))
    that(sample(everything).path is None, "there is no path unless it is asked for")
    if sampler.deterministic:
        straight = normal(*noise.shape, seed=1)
        found = sampler.sample(lambda x, sigma: straight, noise, steps=steps, shift=shift).x0
        expected = noise - float(sampler.sigmas(steps, shift)[0]) * straight
        close(found, expected, "where the velocity is constant, x0 is exact", 1e-5)


def _check_path(sampler: Sampler, result: SampleResult, noise: Tensor, x0: Tensor, sigmas: Tensor) -> None:
    path = result.path
    that(path is not None, "the path is there when it is asked for")
    assert path is not None
    steps = len(sigmas) - 1
    equal(result.x0, x0, "keeping the path changes nothing")
    that(path.states.shape == (steps + 1, *noise.shape), f"the path has {steps + 1} states")
    equal(path.states[0], noise, "the path starts at the noise")
    equal(path.states[-1], x0, "the path ends at x0")
    equal(path.sigmas.double().cpu(), sigmas, "the path has the schedule's times")
    if sampler.deterministic:
        that(path.log_probs is None, "a deterministic sampler has no probabilities")
    else:
        that(path.log_probs is not None, "a random sampler gives the probabilities of its steps")
        assert path.log_probs is not None
        that(path.log_probs.shape == (steps, len(noise)), "probabilities are [steps, B]")

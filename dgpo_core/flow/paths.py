"""Access to the steps of sampled paths, for objectives with `needs_path`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler
from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import same_times
from dgpo_core.types import PathStep

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Path, Rollout

__all__ = [
    "PathSteps",
    "has_distribution",
    "random_times",
    "samplers_such_that",
    "step_at",
    "step_stds",
    "without_means",
]


def has_distribution(sampler: Sampler | type[Sampler]) -> bool:
    """Whether a sampler is stochastic and implements `step_distribution`."""
    kind = sampler if isinstance(sampler, type) else type(sampler)
    return not sampler.deterministic and kind.step_distribution is not Sampler.step_distribution


def samplers_such_that(registry: Registry, suits: Callable[[type[Sampler]], bool]) -> str:
    """Return the names of the installed samplers that satisfy `suits`, for messages; skips those that fail to load."""
    names = []
    for name, component in registry.components("sampler").items():
        with suppress(UserError):
            names += [name] if suits(registry.implementation(component)) else []
    return ", ".join(names) or "none of the installed ones"


def step_stds(sampler: Sampler, sigmas: Sequence[float]) -> list[float]:
    """Return the std of each step of a schedule [steps + 1]; 0 for steps that are not random."""
    point = torch.zeros(1, 1)
    return [sampler.step_distribution(point, point, sigma, after)[1] for sigma, after in pairwise(sigmas)]


def random_times(sampler: Sampler, sigmas: Tensor) -> Tensor:
    """Return the times of a schedule [steps + 1] at which a stochastic step starts, followed by the final 0; float64.

    Steps with std 0, such as the last one of coefficients-preserving sampling, have no density.
    """
    random = [std > 0 for std in step_stds(sampler, sigmas.tolist())]
    return sigmas[torch.tensor([*random, True])]


def without_means(rollout: Rollout) -> Rollout:
    """Return the rollout without the means of its path."""
    path = rollout.path
    return rollout if path is None or path.means is None else replace(rollout, path=replace(path, means=None))


def step_at(sigma: float, sigmas: Sequence[float]) -> int:
    """Return the index of the step of a schedule [steps + 1] that starts at sigma. Raises UserError if none does."""
    if sigma not in sigmas[:-1]:
        times = ", ".join(f"{time:.4f}" for time in sigmas[:-1])
        raise UserError(
            f"timesteps.use: the objective requires times at which sampler steps start, but sigma {sigma:.4f} is not "
            f"one of them ({times}); use a policy that draws these times, such as sampler-steps"
        )
    return list(sigmas).index(sigma)


class PathSteps:
    """Steps of individual samples, in the flat, group-major order, from the paths of an iteration's micro-batches.

    The states stay on their device; `at` gathers one step of the requested samples.
    """

    def __init__(self, paths: Sequence[Path], sampler: Sampler) -> None:
        self.paths = paths
        self.sampler = sampler
        self.sigmas: list[float] = paths[0].sigmas.tolist()
        others = [path.sigmas for path in paths if path.sigmas is not paths[0].sigmas]
        if not all(same_times(sigmas.tolist(), self.sigmas) for sigmas in others):
            raise UserError(
                "rollout: the objective requires paths with the same times for every sample, but samples of different "
                "sizes have different times; use one size for all prompts, or set rollout.shift to a number"
            )
        self._ends = list(accumulate(path.states.shape[1] for path in paths))

    def at(self, sigma: float, samples: Sequence[int]) -> PathStep:
        """Return the step of these samples that starts at sigma, up to roundings of the device that drew the path.

        Raises UserError if none of the steps does.
        """
        nearest = min(self.sigmas[:-1], key=lambda time: abs(time - sigma))
        k = step_at(nearest if same_times([nearest], [sigma]) else sigma, self.sigmas)
        rows = [self._row(sample) for sample in samples]
        x = torch.stack([path.states[k, row] for path, row in rows])
        log_probs = [path.log_probs[k, row] for path, row in rows if path.log_probs is not None]
        means = [path.means[k, row] for path, row in rows if path.means is not None]
        after = self.sigmas[k + 1]
        return PathStep(
            x=x,
            next_x=torch.stack([path.states[k + 1, row] for path, row in rows]),
            sigma=sigma,
            next_sigma=after,
            log_prob=torch.stack(log_probs),
            distribution=partial(self._distribution, x, sigma, after),
            mean=torch.stack(means) if len(means) == len(rows) else None,
            stds=self._stds,
        )

    @cached_property
    def _stds(self) -> list[float]:
        return step_stds(self.sampler, self.sigmas)

    def _distribution(self, x: Tensor, sigma: float, after: float, velocity: Tensor) -> tuple[Tensor, float]:
        return self.sampler.step_distribution(x, velocity, sigma, after)

    def _row(self, sample: int) -> tuple[Path, int]:
        """Return the path of the micro-batch that contains a sample, and the sample's row in it."""
        i = bisect_right(self._ends, sample)
        return self.paths[i], sample - (self._ends[i - 1] if i else 0)

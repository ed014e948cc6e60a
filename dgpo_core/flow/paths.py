"""The steps that a sampler took, for objectives that learn from them (`Objective.needs_path`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler
from dgpo_core.errors import UserError
from dgpo_core.types import PathStep

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.types import Path

__all__ = ["PathSteps", "has_distribution", "random_times", "samplers_such_that", "step_at"]


def has_distribution(sampler: Sampler | type[Sampler]) -> bool:
    """Whether its steps are random and it says how."""
    kind = sampler if isinstance(sampler, type) else type(sampler)
    return not sampler.deterministic and kind.step_distribution is not Sampler.step_distribution


def samplers_such_that(registry: Registry, suits: Callable[[type[Sampler]], bool]) -> str:
    """Names of the installed samplers that suit, for a message; those that cannot be used are left out."""
    found = []
    for name, part in registry.components("sampler").items():
        with suppress(UserError):
            found += [name] if suits(registry.implementation(part)) else []
    return ", ".join(found) or "none of those installed"


def random_times(sampler: Sampler, sigmas: Tensor) -> Tensor:
    """Of a schedule [steps + 1], the times at which a random step starts, and the final 0; float64.

    A step of std 0 (the last one of coefficients-preserving sampling, say) has no density to learn from.
    """
    point = torch.zeros(1, 1)
    steps = pairwise(sigmas.tolist())
    random = [sampler.step_distribution(point, point, sigma, after)[1] > 0 for sigma, after in steps]
    return sigmas[torch.tensor([*random, True])]


def step_at(sigma: float, sigmas: Sequence[float]) -> int:
    """The step of a schedule [steps + 1] that starts at sigma. Raises UserError if none does."""
    if sigma not in sigmas[:-1]:
        times = ", ".join(f"{time:.4f}" for time in sigmas[:-1])
        raise UserError(
            f"timesteps.use: the objective learns from steps that the sampler took, but sigma {sigma:.4f} is none of "
            f"its times ({times}); choose a policy that draws them, such as sampler-steps"
        )
    return list(sigmas).index(sigma)


class PathSteps:
    """The paths of an iteration's micro-batches, as steps of single samples in the flat, group-major order.

    The states stay where the sampler left them; only a micro-batch's share of one step is gathered at a time.
    """

    def __init__(self, paths: Sequence[Path], sampler: Sampler) -> None:
        self.paths = paths
        self.sampler = sampler
        self.sigmas: list[float] = paths[0].sigmas.tolist()
        if any(path.sigmas is not paths[0].sigmas and path.sigmas.tolist() != self.sigmas for path in paths):
            raise UserError(
                "rollout: the objective learns from steps that the sampler took, at the same times in every sample, "
                "but samples of different sizes were drawn at different times; give all prompts one size, or set "
                "rollout.shift to a number"
            )
        self._ends = list(accumulate(path.states.shape[1] for path in paths))

    def at(self, sigma: float, samples: Sequence[int]) -> PathStep:
        """The step that starts at sigma, of these samples. Raises UserError if sigma is no time of the path."""
        k = step_at(sigma, self.sigmas)
        places = [self._place(sample) for sample in samples]
        x = torch.stack([path.states[k, row] for path, row in places])
        log_probs = [path.log_probs[k, row] for path, row in places if path.log_probs is not None]
        after = self.sigmas[k + 1]
        return PathStep(
            x=x,
            next_x=torch.stack([path.states[k + 1, row] for path, row in places]),
            sigma=sigma,
            next_sigma=after,
            log_prob=torch.stack(log_probs),
            distribution=partial(self._distribution, x, sigma, after),
        )

    def _distribution(self, x: Tensor, sigma: float, after: float, velocity: Tensor) -> tuple[Tensor, float]:
        return self.sampler.step_distribution(x, velocity, sigma, after)

    def _place(self, sample: int) -> tuple[Path, int]:
        """The micro-batch in which a sample was drawn, and its row there."""
        i = bisect_right(self._ends, sample)
        return self.paths[i], sample - (self._ends[i - 1] if i else 0)

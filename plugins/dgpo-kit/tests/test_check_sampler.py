"""`check_sampler` passes sound samplers and reports each violated requirement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import Sampler
from dgpo_core.draws import Draws
from dgpo_core.flow.schedules import finish
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.types import Path, SampleResult, Schedule
from dgpo_kit.contracts import check_sampler

Check = Callable[[], None]
Found = Callable[[str, Check], None]


class Euler(Sampler):
    """Sound, and easy to break."""

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        return finish(torch.linspace(schedule.first, 0, steps + 1, dtype=torch.float64)[:-1], schedule)

    def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
        return x + change

    def sample(
        self,
        velocity: Any,
        noise: Tensor,
        *,
        steps: int,
        schedule: Schedule,
        draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:
        sigmas = self.sigmas(steps, schedule)
        states = [noise]
        for i in range(steps):
            x = states[-1]
            self.sigma = float(sigmas[i])
            change = float(sigmas[i + 1] - sigmas[i]) * velocity(x, sigmas[i].float())
            states.append(self.step(x, change, draws, i))
        return SampleResult(states[-1], self.path(torch.stack(states), sigmas) if keep_path else None)

    def path(self, states: Tensor, sigmas: Tensor) -> Path:
        return Path(states, sigmas)


class Ancestral(Euler):
    """Random, by keys."""

    deterministic = False

    def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
        rows = [key.at(i).normal(tuple(x.shape[1:])) for key in draws]
        return x + change + (0.1 * torch.stack(rows) if rows else 0.0)

    def path(self, states: Tensor, sigmas: Tensor) -> Path:
        return Path(states, sigmas, states[1:].flatten(2).mean(2))


class Stated(Ancestral):
    """Random, and says how; its first step is not random."""

    def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
        return super().step(x, change, draws, i) if self.sigma < 1 else x + change

    def path(self, states: Tensor, sigmas: Tensor) -> Path:
        steps = [self.log_prob(*x, *s) for x, s in zip(pairwise(states), pairwise(sigmas.tolist()), strict=True)]
        return Path(states, sigmas, torch.stack(steps))

    def log_prob(self, x: Tensor, next_x: Tensor, sigma: float, after: float) -> Tensor:
        mean, std = self.step_distribution(x, torch.tanh(1.5 * x + sigma), sigma, after)
        return gaussian_log_prob(next_x, mean, std) if std else torch.zeros(len(x))

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        return x + (next_sigma - sigma) * velocity, 0.1 if sigma < 1 else 0.0


@pytest.mark.parametrize("kind", [Euler, Ancestral, Stated])
def test_sound_samplers_pass(kind: type[Sampler]) -> None:
    check_sampler(kind(None))


def samplers() -> list[tuple[str, Check]]:
    class Single(Euler):
        def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
            return super().sigmas(steps, schedule).float()

    class Ascending(Euler):
        def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
            return super().sigmas(steps, schedule).flip(0)

    class Short(Euler):
        def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
            return super().sigmas(steps + 1, schedule)[:-1]

    class Deaf(Euler):
        def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
            return super().sigmas(steps, replace(schedule, first=1.0))

    class Endless(Euler):
        def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
            return super().sigmas(steps, replace(schedule, terminal=None))

    class InPlace(Euler):
        def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
            return x.add_(change)

    class Centered(Euler):
        def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
            return x + change - change.mean(0)

    class Global(Ancestral):
        def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
            return x + change + 0.1 * torch.randn_like(x)

    class Quiet(Euler):
        def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
            torch.rand(())
            return x + change

    class Damped(Euler):
        def step(self, x: Tensor, change: Tensor, draws: Sequence[Draws], i: int) -> Tensor:
            return x + 0.9 * change

    class NoProbabilities(Ancestral):
        def path(self, states: Tensor, sigmas: Tensor) -> Path:
            return Path(states, sigmas)

    class Elsewhere(Stated):
        def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> Any:
            mean, std = super().step_distribution(x, velocity, sigma, next_sigma)
            return mean + 1, std

    class Louder(Stated):
        def log_prob(self, x: Tensor, next_x: Tensor, sigma: float, after: float) -> Tensor:
            return super().log_prob(x, next_x, sigma, after) + 0.1 * (sigma < 1)

    class Displaced(Stated):
        """Keeps the states before the noise that it adds, and not the means."""

        def path(self, states: Tensor, sigmas: Tensor) -> Path:
            return replace(super().path(states, sigmas), means=states[:-1])

    class NoStart(Euler):
        def path(self, states: Tensor, sigmas: Tensor) -> Path:
            return Path(states[1:], sigmas)

    expected: list[tuple[type[Sampler], str]] = [
        (Displaced, "`means` must be those of `step_distribution`"),
        (Single, "sigmas must be float64 on the CPU"),
        (Ascending, "sigmas must descend"),
        (Short, "sigmas must go from at most 1 to 0"),
        (Deaf, "the first sigma must be at most the model's first sigma"),
        (Endless, "the last sigma before 0 must be `terminal` 0.02"),
        (InPlace, "the noise must not be modified"),
        (Centered, "a sample must not depend on the other samples"),
        (Global, "the same noise and keys must give the same sample"),
        (Quiet, "must not change the global random state of torch"),
        (Damped, "x0 must be exact for a constant velocity"),
        (NoProbabilities, "a random sampler must return the `log_probs`"),
        (NoStart, "the path must have 2 states"),
        (Elsewhere, "a step with std 0 must return the mean"),
        (Louder, "`log_probs` must be those of `step_distribution`"),
    ]

    def run(kind: type[Sampler]) -> Check:
        return lambda: check_sampler(kind(None))

    return [(requirement, run(kind)) for kind, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), samplers())
def test_samplers(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)

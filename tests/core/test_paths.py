"""Steps of a sampler's path: found by their time, gathered across micro-batches, and only where they are random."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.contracts import Sampler, VelocityFn
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import PathSteps, has_distribution, random_times, step_at, step_stds, without_means
from dgpo_core.types import Path, Rollout, SampleResult, Schedule

SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)


class Silent(Sampler):
    """Random, and does not say how."""

    deterministic = False

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        return SIGMAS

    def sample(
        self, velocity: VelocityFn, noise: Tensor, *, steps: int, schedule: Schedule, draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:  # fmt: skip
        raise NotImplementedError


class Stated(Silent):
    """Random in its second and third step."""

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        return x + (next_sigma - sigma) * velocity, 0.5 if next_sigma in (0.5, 0.25) else 0.0


def test_which_samplers_say_how_their_steps_are_drawn() -> None:
    assert has_distribution(Stated(None))
    assert not has_distribution(Silent(None))
    assert not has_distribution(FlowEuler(None))
    with pytest.raises(NotImplementedError, match="Silent does not implement step_distribution"):
        Silent(None).step_distribution(torch.zeros(1, 1), torch.zeros(1, 1), 1.0, 0.5)


def test_only_random_steps_have_times_to_train_at() -> None:
    assert random_times(Stated(None), SIGMAS).tolist() == [0.75, 0.5, 0.0]


def test_a_step_is_found_by_its_exact_time() -> None:
    assert [step_at(sigma, SIGMAS.tolist()) for sigma in SIGMAS[:-1].tolist()] == [0, 1, 2, 3]
    for stranger in (0.0, 0.74, 0.75 + 1e-12):
        with pytest.raises(UserError, match=re.escape("is not one of them (1.0000, 0.7500, 0.5000, 0.2500)")):
            step_at(stranger, SIGMAS.tolist())


def test_paths_of_another_device_have_the_same_times_up_to_roundings() -> None:
    """float32 times an ulp off; a time that is really another one is refused."""
    states, times = torch.arange(5.0)[:, None, None], torch.tensor([1.0, 0.7, 0.5, 0.2, 0.0])
    rounded = torch.nextafter(times, torch.ones_like(times))
    paths = [Path(states, sigmas, states[:-1, :, 0]) for sigmas in (rounded, times)]
    assert PathSteps(paths, Stated(None)).at(0.7, [0]).x.tolist() == [[1.0]]
    with pytest.raises(UserError, match="is not one of them"):
        PathSteps(paths, Stated(None)).at(0.7001, [0])
    with pytest.raises(UserError, match="samples of different sizes have different times"):
        PathSteps([paths[0], Path(states, times * 0.9999, states[:-1, :, 0])], Stated(None))


def test_samples_of_several_micro_batches_are_gathered() -> None:
    """Three micro-batches of 3, 3 and 1 samples; sample i has the value 10 * step + i."""
    states = torch.arange(5.0)[:, None] * 10 + torch.arange(7.0)
    paths = [
        Path(states[:, rows, None], SIGMAS, -states[:-1, rows]) for rows in (slice(0, 3), slice(3, 6), slice(6, 7))
    ]
    steps = PathSteps(paths, Stated(None))
    for k, (sigma, after) in enumerate(pairwise(SIGMAS.tolist())):
        step = steps.at(sigma, [5, 0, 6, 3, 2])
        assert step.x.tolist() == [[10 * k + i] for i in (5, 0, 6, 3, 2)]
        assert step.next_x.tolist() == [[10 * (k + 1) + i] for i in (5, 0, 6, 3, 2)]
        assert step.log_prob.tolist() == [-(10 * k + i) for i in (5, 0, 6, 3, 2)]
        assert (step.sigma, step.next_sigma) == (sigma, after)
        mean, std = step.distribution(torch.ones(5, 1))
        assert torch.equal(mean, step.x - 0.25)
        assert std == (0.5 if k in (1, 2) else 0.0)


def test_means_of_steps_are_gathered_if_they_were_kept() -> None:
    """Sample i has the mean 100 * step + i."""
    states, means = torch.zeros(5, 4, 1), torch.arange(4.0)[:, None, None] * 100 + torch.arange(4.0)[:, None]
    paths = [Path(states[:, rows], SIGMAS, states[:-1, rows, 0], means[:, rows]) for rows in (slice(0, 3), slice(3, 4))]
    step = PathSteps(paths, Stated(None)).at(0.5, [3, 1])
    assert step.mean is not None
    assert step.mean.tolist() == [[203.0], [201.0]]
    assert list(step.stds) == step_stds(Stated(None), SIGMAS.tolist()) == [0.0, 0.5, 0.5, 0.0]
    rollout = Rollout(range(3), (), states[-1, :3], paths[0])
    bare = without_means(rollout)
    assert bare.path is not None
    assert bare.path.means is None
    assert bare.path.states is paths[0].states
    assert without_means(bare) is bare
    assert PathSteps([bare.path, paths[1]], Stated(None)).at(0.5, [0]).mean is None

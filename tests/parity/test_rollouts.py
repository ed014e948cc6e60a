"""Rollouts and training times against the scheduler that the authors' code samples with."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from dgpo_core.builtin.options import WeightedOptions
from dgpo_core.builtin.samplers import FlowDPMSolverPP
from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.contracts import TimestepContext
from dgpo_core.draws import Draws
from dgpo_core.types import Schedule
from dgpo_schemas.base import Options


def scheduler() -> DPMSolverMultistepScheduler:
    """As diffusers' converter of Sana's checkpoints makes it: three settings, all others as they come. The code reads
    the file that this wrote and sets the shift to 3."""
    return DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)


def velocity(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(1.7 * x + sigma) + 0.4 * torch.sin(3 * sigma) * x.flip(-1)


def theirs(dtype: torch.dtype, steps: int, noise: Tensor) -> Tensor:
    """Rolled out with latents and velocities of a dtype, at the times as they are."""
    solver = scheduler()
    solver.set_timesteps(steps)
    x = noise.to(dtype)
    for i, timestep in enumerate(solver.timesteps):
        v = velocity(x.float(), solver.sigmas[i]).to(dtype)
        x = solver.step(v, timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("steps", [10, 14])
def test_the_solver_is_the_one_that_we_take_the_code_to_have(steps: int) -> None:
    """Second order, midpoint, a first-order last step, down to sigma 0; 14 steps are its evaluation's."""
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = FlowDPMSolverPP(Options()).sample(velocity, noise, steps=steps, schedule=Schedule(3.0))
    torch.testing.assert_close(ours.x0, theirs(torch.float32, steps, noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 14])
def test_their_latents_are_in_bfloat16(steps: int) -> None:
    """Their embeddings are bfloat16, and so are with them the noise, the velocities and every step's latents."""
    noise = torch.randn(8, 16, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    rounded, exact = theirs(torch.bfloat16, steps, noise), theirs(torch.float32, steps, noise)
    assert rounded.dtype == torch.bfloat16
    distance = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 2e-3 < float(distance) < 2e-2


@pytest.mark.parametrize(
    ("last", "t_mins"),
    [(6, (0.666, 0.5625)), (4, (0.817,))],  # the code's `trunc_steps`; 0.5625 is the paper's shift(0.3)
)
def test_the_times_that_may_be_drawn(last: int, t_mins: tuple[float, ...]) -> None:
    """The code draws four of range(trunc_steps + 1), indices of the rollout's ten steps."""
    every = [0.999 * (10 - i) / 10 for i in range(10)]
    wanted = {round(3 * s / (1 + 2 * s), 9) for s in every[: last + 1]}
    sigmas = FlowDPMSolverPP(Options()).sigmas(10, Schedule(3.0))
    for t_min in t_mins:
        context = TimestepContext(sigmas, t_min, 1.0, shift=3.0, iteration=0, iterations=1)
        found = set()
        for seed in range(40):
            drawn = SamplerSteps(WeightedOptions()).draw(4, context, Draws(seed)).tolist()
            assert len(set(drawn)) == 4
            found |= {round(s, 9) for s in drawn}
        assert found == wanted

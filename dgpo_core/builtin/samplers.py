"""Deterministic solvers of the flow ODE dx/dsigma = v(x, sigma), from noise (sigma = 1) to data (sigma = 0).

Schedules and steps match the diffusers schedulers of the model pipelines to 1e-5 in the latents, if the model receives
the same times. It does with Euler's pipelines; those with DPM-Solver round the timestep that they pass to the model.
All coefficients are Python floats, computed in float64 before the first step, so that the loop never synchronizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler, VelocityFn
from dgpo_core.draws import Draws
from dgpo_core.flow import schedules
from dgpo_core.flow.schedules import SIGMA_STEP
from dgpo_core.flow.velocity import denoised
from dgpo_core.transfers import to_device
from dgpo_core.types import Path, SampleResult, Schedule

__all__ = ["FlowDPMSolverPP", "FlowEuler"]


class FlowEuler(Sampler):
    """Euler's method, first order: x + (sigma' - sigma) * v.

    Uses the times of the model's schedule. The default grid, `scheduler`, matches diffusers'
    FlowMatchEulerDiscreteScheduler(shift=k), the scheduler of SD3 pipelines: linear from 1 to the smallest training
    time, then shifted, then 0. As in diffusers, the smallest time 1/1000 is shifted before the grid is built, and
    therefore shifted twice: with shift 3 the last time before 0 is 0.0089.
    """

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Return float64 [steps + 1] on the CPU, descending from the schedule's first time, by default 1, to 0.

        Raises UserError for steps < 1, or a shift that is not positive or too large to keep the times apart.
        """
        return schedules.sigmas(steps, schedule)

    def sample(
        self,
        velocity: VelocityFn,
        noise: Tensor,
        *,
        steps: int,
        schedule: Schedule,
        draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:
        """From noise [B, ...] to x0 in `steps` evaluations of the velocity; `draws` are not used."""
        sigmas = self.sigmas(steps, schedule)
        x, states = noise, [noise]
        for time, (sigma_s, sigma_t) in zip(_times(sigmas, noise), pairwise(sigmas.tolist()), strict=True):
            x = x + (sigma_t - sigma_s) * velocity(x, time)
            if keep_path:
                states.append(x)
        return SampleResult(x, Path(torch.stack(states), sigmas) if keep_path else None)


class FlowDPMSolverPP(Sampler):
    """DPM-Solver++(2M), midpoint form, second order (Lu et al., arXiv 2211.01095, algorithm 2).

    With alpha = 1 - sigma and lambda = log(alpha / sigma), from s to t, h = lambda_t - lambda_s:

        x_t = (sigma_t / sigma_s) * x_s - alpha_t * (exp(-h) - 1) * D
        D   = (1 + 1 / 2r) * x0_s - (1 / 2r) * x0_previous        r = h_previous / h

    where for flow schedules -alpha_t * (exp(-h) - 1) = 1 - sigma_t / sigma_s, finite at both ends. The first step (no
    previous estimate) and the last one (h is infinite) are first order, D = x0_s, so that the last step returns the
    denoised estimate.

    Times match diffusers' DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=k): the first is the shifted
    0.999, and the initial noise is taken as the state there. That scheduler passes integer timesteps to the model, 1000
    sigma rounded down: in its pipelines, and in training with the DGPO authors' code, the model receives a time up to
    1e-3 below the step's sigma, 5e-4 on average. This sampler passes sigma itself. It uses the first time, the shift
    and the terminal time of a model's schedule, but not its grid.
    """

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Return float64 [steps + 1] on the CPU, descending to 0 from the shifted first time, at most shift(0.999).

        Raises UserError for steps < 1, or a shift that is not positive or too large to keep the times apart.
        """
        schedules.check(steps, schedule)
        first = min(1 - SIGMA_STEP, schedule.first)
        return schedules.finish(torch.linspace(first, 0, steps + 1, dtype=torch.float64)[:-1], schedule)

    def sample(
        self,
        velocity: VelocityFn,
        noise: Tensor,
        *,
        steps: int,
        schedule: Schedule,
        draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:
        """From noise [B, ...] to x0 in `steps` evaluations of the velocity; `draws` are not used."""
        sigmas = self.sigmas(steps, schedule)
        corrections = _half_inverse_r(sigmas.tolist())
        x, states, previous = noise, [noise], noise
        each = zip(_times(sigmas, noise), pairwise(sigmas.tolist()), corrections, strict=True)
        for time, (sigma_s, sigma_t), half_inverse_r in each:
            x0_s = denoised(x, velocity(x, time), sigma_s)
            D = x0_s + half_inverse_r * (x0_s - previous) if half_inverse_r else x0_s
            x = (sigma_t / sigma_s) * x + (1 - sigma_t / sigma_s) * D if sigma_t else D
            previous = x0_s
            if keep_path:
                states.append(x)
        return SampleResult(x, Path(torch.stack(states), sigmas) if keep_path else None)


def _half_inverse_r(sigmas: list[float]) -> list[float]:
    """Return 1 / 2r for each step of DPM-Solver++(2M); 0 for the first and the last step, which are first order."""
    lambdas = [_half_log_snr(sigma) for sigma in sigmas[:-1]]
    h = [after - before for before, after in pairwise(lambdas)]
    inner = [h[i] / (2 * h[i - 1]) for i in range(1, len(h))]
    return [0.0, *inner, 0.0][: len(lambdas)]


def _half_log_snr(sigma: float) -> float:
    """Return lambda = log((1 - sigma) / sigma), sigma in (0, 1]; -inf at 1, which extreme shifts can round to."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _times(sigmas: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Copy all sigmas except the last to the device of the noise, in one copy, as 0-d float32 tensors."""
    return to_device(sigmas[:-1], noise.device, torch.float32).unbind()

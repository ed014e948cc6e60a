"""Random samplers of a flow: each step draws the next state from a Gaussian with a known density.

Times, x_sigma and velocities are defined as in `dgpo_core.flow.velocity`: sigma = 1 is noise, dsigma < 0. Coefficients
are Python floats computed in float64.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler, VelocityFn
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow import schedules
from dgpo_core.flow.velocity import gaussian_log_prob
from dgpo_core.transfers import to_device
from dgpo_core.types import Path, SampleResult, Schedule

__all__ = ["FlowCps", "FlowSde"]


class RandomSampler(Sampler):
    """Base of the random samplers: draws each state from `step_distribution`, at the times of `flow-euler`.

    Steps that start outside [options.random_to, options.random_from] are Euler steps of the flow. With a few random
    steps this is the rollout of Flow-GRPO-Fast and of MixGRPO (arXiv 2507.21802), which moves the window.
    """

    deterministic = False

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Return float64 [steps + 1] on the CPU, descending to 0. Raises UserError like `flow-euler`."""
        return schedules.sigmas(steps, schedule)

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        """Return (mean [B, ...], std) of the state at next_sigma, given x at sigma > next_sigma >= 0.

        A std of 0 means that the step is not random.
        """
        if not self.options.random_to <= sigma <= self.options.random_from:
            return x + (next_sigma - sigma) * velocity, 0.0
        return self._random_step(x, velocity, sigma, next_sigma)

    @abstractmethod
    def _random_step(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        """Return (mean, std) of a random step."""

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
        """Sample x0 from noise [B, ...] in `steps` evaluations of the velocity.

        draws: one random key per sample. The log-probabilities of the path are means over the non-batch dimensions, and
        0 for steps that are not random. Raises ValueError if the number of keys differs from the number of samples.
        """
        if len(draws) != len(noise):
            raise ValueError(f"{len(noise)} samples and {len(draws)} keys: a random sampler needs one key per sample")
        sigmas = self.sigmas(steps, schedule)
        times = to_device(sigmas[:-1], noise.device, torch.float32).unbind()
        x, states, means, log_probs = noise, [noise], [], []
        for i, (sigma, next_sigma) in enumerate(pairwise(sigmas.tolist())):
            mean, std = self.step_distribution(x, velocity(x, times[i]), sigma, next_sigma)
            x = mean
            if std > 0:
                x = mean + std * normal_rows([key.at("step", i) for key in draws], tuple(x.shape[1:]), x.device)
            if keep_path:
                states.append(x)
                means.append(mean)
                log_probs.append(gaussian_log_prob(x, mean, std) if std > 0 else mean.new_zeros(len(mean)))
        if not keep_path:
            return SampleResult(x)
        return SampleResult(x, Path(torch.stack(states), sigmas, torch.stack(log_probs), torch.stack(means)))


class FlowSde(RandomSampler):
    """Euler-Maruyama steps of the SDE with the marginals of the flow (Flow-GRPO, arXiv 2505.05470, its ODE-to-SDE).

    dx = [v + s^2 / (2 sigma) * (x + (1 - sigma) v)] dsigma + s dw with s = a * sqrt(sigma / (1 - sigma)), a = `noise`.
    The second term in the brackets is -s^2 / 2 times the score, computed from the velocity. With dt = sigma' - sigma:

        mean = x * (1 + s^2 / (2 sigma) * dt) + v * (1 + s^2 (1 - sigma) / (2 sigma)) * dt        std = s * sqrt(-dt)

    At sigma = 1, where s is infinite, its denominator uses the next sigma, as in the authors' code (yifan123/flow_grpo,
    sd3_sde_with_logprob.py). The last step also adds noise; its std a * sigma / sqrt(1 - sigma) is small because the
    last sigma of the schedule is small.
    """

    def _random_step(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        dt = next_sigma - sigma
        s = self.options.noise * math.sqrt(sigma / (1 - (sigma if sigma < 1 else next_sigma)))
        drift = s**2 / (2 * sigma)
        mean = (1 + drift * dt) * x + (1 + drift * (1 - sigma)) * dt * velocity
        return mean, s * math.sqrt(-dt)


class FlowCps(RandomSampler):
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952; code: IamCreateAI/FlowCPS).

    With the estimates x0^ = x - sigma v and noise^ = x + (1 - sigma) v, a step to sigma' is

        mean = (1 - sigma') x0^ + sigma' cos(eta pi / 2) noise^        std = sigma' sin(eta pi / 2)

    For any eta, the coefficients of data and noise are those of x_sigma': (1 - sigma') and, as cos^2 + sin^2 = 1,
    sigma'. (An SDE step leaves excess noise.) The step to sigma' = 0 is not random. Log-probabilities are those of the
    Gaussian; the authors' code omits the constants, including the factor 1 / (2 std^2), which changes the scale of the
    ratio and the meaning of its clip range. eta does not decrease with the number of steps, so for data that is not
    concentrated in a point, more steps do not lead to the marginals of the flow.
    """

    def _random_step(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        angle = self.options.eta * math.pi / 2
        kept = next_sigma * math.cos(angle)
        mean = (1 - next_sigma + kept) * x + (kept * (1 - sigma) - (1 - next_sigma) * sigma) * velocity
        return mean, next_sigma * math.sin(angle)

"""The sampler contract: solvers of the flow ODE or SDE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo_core.types import SampleResult, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.draws import Draws

__all__ = ["Sampler", "VelocityFn"]

VelocityFn = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x_sigma [B, ...], sigma 0-d tensor in [0, 1]) -> velocity [B, ...] = dx/dsigma, an estimate of noise - x0."""


class Sampler(ABC):
    """Integrates the flow from noise (sigma = 1, or the first time of the model's schedule) to data (sigma = 0)."""

    deterministic: ClassVar[bool] = True
    """Whether samples depend only on the initial noise."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Return the solver's times: float64 [steps + 1] on the CPU, descending, the first at most 1, the last 0.

        `steps` is diffusers' `num_inference_steps`. `dgpo_core.flow.schedules.sigmas` implements every field of a
        schedule. A sampler with its own grid starts it no higher than `schedule.first` and passes it to
        `schedules.finish`, which shifts and stretches it. Raises UserError if `steps` and `schedule` yield no such
        times.
        """

    @abstractmethod
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
        """Integrate from the state `noise` [B, ...] at the first of `sigmas` to x0, in the dtype of the noise.

        Evaluates the velocity only within the model's range: at the times of `sigmas` except the last, and between
        them. `draws` holds one random key per sample, for stochastic samplers. With `keep_path`, the result includes
        the visited states.
        """

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        """Return (mean [B, ...], std) of the Gaussian distribution of the state at next_sigma, given x at sigma.

        x and velocity are [B, ...]; the mean is differentiable in the velocity. std is 0 for a deterministic step.
        Optional: needed only by objectives with `needs_path`. A stochastic sampler that implements it must draw its
        steps from exactly this distribution.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement step_distribution")

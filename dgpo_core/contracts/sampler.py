"""The contract of samplers: how the flow is solved."""

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
"""(x_sigma [B, ...], sigma 0-d tensor in [0, 1]) -> velocity [B, ...] = d x / d sigma, an estimate of noise - x0."""


class Sampler(ABC):
    """Solves the flow from noise (sigma = 1, or where a model's noise begins) to data (sigma = 0)."""

    deterministic: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Times visited: float64 [steps + 1] on the CPU, descending, the first at most 1, the last 0.

        `dgpo_core.flow.schedules.sigmas` honors all that a schedule says. A sampler with a grid of its own starts
        it no higher than `schedule.first`, and gives it to `schedules.finish` to be shifted and stretched. Raises
        UserError for what gives no such times.
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
        """From the state `noise` [B, ...] at the first of `sigmas` to x0, in the dtype of the noise. The velocity is
        asked for at times of the model's range alone: those of `sigmas` but the last, and between them. `draws`, one
        key per sample, feeds samplers that are not deterministic."""

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        """(mean [B, ...], std) of the Gaussian from which the state at next_sigma is drawn, given x [B, ...] at sigma.

        Differentiable in the velocity [B, ...]. std is 0 for a step that is not random. Optional: only objectives that
        need the path want it, of a sampler that is not deterministic and draws its steps from just this.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its steps are distributed")

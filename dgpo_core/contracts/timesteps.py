"""The contract of timestep policies: at which times the loss is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.draws import Draws

__all__ = ["Probe", "TimestepContext", "TimestepPolicy"]


@dataclass(frozen=True, slots=True)
class TimestepContext:
    """What a timestep policy may look at: sigmas float64 [steps + 1] of the rollouts of the configured resolution, the
    range, and progress.

    t_min, t_max: within the model's range. shift: of the rollouts' schedule, whether the run file sets it or the model;
    it makes a number of `shift(0.3)` (`dgpo_schemas.sigma.resolve_sigma`).
    deterministic: whether the rollouts' sampler is, so that samples in few steps and in many can be compared.
    """

    sigmas: Tensor
    t_min: float
    t_max: float
    shift: float
    iteration: int
    iterations: int
    deterministic: bool = True


class Probe(ABC):
    """The model as it is now, for timestep policies that measure it.

    Always the same training prompts and noise, so that what changes between two measurements is the model; prompts of
    the size that most of them have. Every call costs passes of it.
    """

    @abstractmethod
    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        """x0 [count, ...] as rollouts are drawn now, in `refine` times as many steps; sample i has the same noise
        whatever `refine` is."""

    @abstractmethod
    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Denoising errors (dsm) of the policy and of the base model, float64 [T, B] on the CPU, of the first B samples
        at times [T] > 0; without guidance and with the model's weight (`Backbone.loss_weight`), as they are trained.
        Sample i has one noise for every time and x0."""


class TimestepPolicy(ABC):
    """Chooses the times at which the loss is taken. May learn from what happened; its state is checkpointed."""

    measures: ClassVar[bool] = False
    """Whether `measure` is called, before each iteration's rollouts."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, context: TimestepContext, count: int) -> None:  # noqa: B027 - optional
        """Raise UserError if `count` times cannot be drawn. Called before the run starts."""

    def measure(self, probe: Probe, context: TimestepContext) -> None:  # noqa: B027 - optional
        """Look at the model; what it finds belongs to the state. Only called where `measures` is set."""

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """Smallest and largest time that `draw` would give now, within [t_min, t_max]; shown in metrics and reports."""
        return context.t_min, context.t_max

    def metrics(self) -> Mapping[str, float]:
        """What is worth a line in the log beside the bounds."""
        return {}

    @abstractmethod
    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """`count` times, float64 [count] on the CPU, within the bounds."""

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - optional
        """Called after each iteration with its metrics."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state for the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what `state_dict` returned."""

"""The timestep policy contract: the times at which the loss is evaluated."""

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
    """Inputs of a timestep policy.

    sigmas: float64 [steps + 1], times of the rollouts at the configured resolution, descending.
    t_min, t_max: range of training times, within the model's range.
    shift: shift of the rollouts' schedule, from the run file or the model; resolves expressions such as `shift(0.3)`
    (`dgpo_schemas.sigma.resolve_sigma`).
    iteration, iterations: the current iteration and the total.
    deterministic: whether the rollouts' sampler is deterministic, so that samples in few and in many steps are
    comparable.
    all_sigmas: float64 [steps + 1], all times of the rollouts, where `sigmas` has only those at which an objective on
    paths can learn, and 0; None: `sigmas` has all.
    """

    sigmas: Tensor
    t_min: float
    t_max: float
    shift: float
    iteration: int
    iterations: int
    deterministic: bool = True
    all_sigmas: Tensor | None = None


class Probe(ABC):
    """Access to the current model, for timestep policies that measure it.

    Uses the same training prompts and noise every time, so that differences between two measurements come from the
    model. The prompts have the most common size of the training set. Every call runs forward passes.
    """

    @abstractmethod
    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        """Draw samples x0 [count, ...] as the current rollouts do, with `refine` times as many solver steps.

        The noise of sample i does not depend on `refine`.
        """

    @abstractmethod
    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Return the denoising score matching errors of the policy and of the base model, float64 [T, B] on the CPU.

        Noises x0 [B, ...], the first B samples, to the times `sigmas` [T] > 0. As in training, predictions are
        unguided and errors are weighted by `Backbone.loss_weight`. The noise of sample i is the same for every time
        and x0.
        """


class TimestepPolicy(ABC):
    """Chooses the times at which the loss is evaluated. Can adapt during training; its state is checkpointed."""

    measures: ClassVar[bool] = False
    """Whether to call `measure` before the rollouts of each iteration."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, context: TimestepContext, count: int) -> None:  # noqa: B027 - optional
        """Raise UserError if `count` times cannot be drawn. Called before the run starts."""

    def measure(self, probe: Probe, context: TimestepContext) -> None:  # noqa: B027 - optional
        """Measure the current model and store the results in the state. Called only if `measures` is set."""

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """Return the smallest and largest time that `draw` can currently return, within [t_min, t_max].

        Shown in metrics and reports.
        """
        return context.t_min, context.t_max

    def metrics(self) -> Mapping[str, float]:
        """Return values to log in addition to the bounds."""
        return {}

    @abstractmethod
    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """Draw `count` times within the bounds: float64 [count] on the CPU. `draws` is the random key."""

    def weights(self, sigmas: Tensor, context: TimestepContext) -> Tensor | None:
        """Return the weights of the losses at times [T] of `draw`: float64 [T] on the CPU, finite and not negative.

        Each multiplies the members' losses at its time, KL terms included, but not what enters `Objective.statistic`;
        the loss of an update is still the sum over its times divided by their number. A weight must depend on its time,
        the context and the state alone, and have mean 1 over the times that `draw` returns, so that it changes the
        share of each time and not the size of the loss. None, the default: all times count alike.
        """
        return None

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - optional
        """Receive the metrics of an iteration, after it finished."""

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-serializable state for the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what `state_dict` returned."""

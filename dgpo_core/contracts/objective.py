"""The objective contract: losses over the members of groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.types import ScoredGroups
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["MemberLoss", "Objective"]


@dataclass(frozen=True, slots=True)
class MemberLoss:
    """Per-member loss [B], with gradient, and named per-member values [B] that are averaged into the metrics."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Objective(ABC):
    """A loss over the members of groups.

    The engine guarantees exact group statistics: it sums `statistic` over every member of a group, however the group is
    split into micro-batches and across ranks, before it calls `loss` for any member. The loss of an optimizer step is
    the mean over all groups and timesteps of the mean of `loss` over a group's scored members, times the timestep's
    weight if the timestep policy has `weights`.
    """

    needs_path: ClassVar[bool] = False
    """Whether the loss uses the sampler's steps (`Predictions.step`). The training times are then the times of the
    sampler's random steps, and every prediction uses the guidance scale of the rollouts."""
    needs_statistic: ClassVar[bool] = False
    """Whether `loss` needs the sum of `statistic` over each member's group."""

    def __init__(self, section: ObjectiveSection, options: Any) -> None:
        self.section = section
        self.options = options

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether the loss needs `Predictions.reference`, from the model that `objective.reference` selects."""

    @property
    def needs_base(self) -> bool:
        """Whether the loss needs `Predictions.base`, for a KL term against the frozen base model, or against the
        reference if that is `start` or `reset`."""
        return False

    @property
    @abstractmethod
    def needs_old(self) -> bool:
        """Whether the loss needs `Predictions.old`, from the model `ema_fast`."""

    @property
    def needs_means(self) -> bool:
        """Whether the loss needs `PathStep.mean`: as much memory again as the states of the paths."""
        return False

    @property
    @abstractmethod
    def skips_zero_weights(self) -> bool:
        """Whether members with signed weight 0 contribute exactly 0, so that the engine can skip their passes."""

    def check(self, run: RunConfig) -> None:  # noqa: B027 - optional
        """Raise UserError if the run's settings are incompatible with this objective. Called before the run starts."""

    def kl_scales(self, groups: ScoredGroups) -> Tensor | None:
        """Return factors >= 0 of the members' KL terms, float64 [g, G] on the CPU, or None (the default) for 1.

        Called once an iteration, with the groups of all ranks and the values of each reward; each member's factor is
        in `Predictions.kl_scale`, which the loss applies. The same on all ranks.
        """
        return None

    def statistic(self, predictions: Predictions) -> Tensor:
        """Return each member's contribution [B] to its group's statistic, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} sets needs_statistic but does not implement `statistic`")

    @abstractmethod
    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss of each member.

        `statistic` [B] is the sum of `statistic` over all members of the member's group; None unless
        `needs_statistic`.
        """

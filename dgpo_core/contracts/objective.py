"""The contract of objectives: losses over members of groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["MemberLoss", "Objective"]


@dataclass(frozen=True, slots=True)
class MemberLoss:
    """Loss [B] per member, with gradient, and named per-member values [B] to be averaged into the metrics."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Objective(ABC):
    """A loss over members of groups.

    The engine guarantees exact group statistics: it adds up `statistic` over every member of a group, however the
    group was split, before it asks for any member's `loss`. The step's loss is the mean over all groups and timesteps
    of the mean of `loss` over a group's scored members.
    """

    needs_path: ClassVar[bool] = False
    """Whether it learns from the steps that the sampler took (`Predictions.step`). The training times are then times of
    the sampler's random steps, and every model's prediction has the rollouts' guidance."""
    needs_statistic: ClassVar[bool] = False

    def __init__(self, section: ObjectiveSection, options: Any) -> None:
        self.section = section
        self.options = options

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `Predictions.reference` must be given: what a preference is relative to, `objective.reference`."""

    @property
    def needs_base(self) -> bool:
        """Whether `Predictions.base` must be given: what a KL term compares with, always the frozen base model."""
        return False

    @property
    @abstractmethod
    def needs_old(self) -> bool:
        """Whether `Predictions.old` must be given."""

    @property
    @abstractmethod
    def skips_zero_weights(self) -> bool:
        """Whether a member with signed weight 0 contributes exactly nothing, so that its passes may be skipped."""

    def check(self, run: RunConfig) -> None:  # noqa: B027 - optional
        """Raise UserError for settings of the run that do not go with this objective. Called before the run starts."""

    def statistic(self, predictions: Predictions) -> Tensor:
        """Each member's share [B] of its group's statistic, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} declares needs_statistic but has no `statistic`")

    @abstractmethod
    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss per member; `statistic` [B] is the complete sum over the member's group (None if not needed)."""

"""The advantage weighting contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdvantageWeighting", "WeighedGroup"]


@dataclass(frozen=True, slots=True)
class WeighedGroup:
    """The scored members of a group, float64 on the CPU; a weighting must not modify them.

    advantages, rewards: [G]; rewards are those that advantages are computed from. per_reward: label of each reward to
    its values [G], nan where missing. distances: [G, G], the root-mean-square difference between the media of two
    members, downscaled to at most 32 pixels a side, in [0, 1]; None where there are no media, as in `dgpo plan`.
    """

    advantages: Tensor
    rewards: Tensor
    per_reward: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    distances: Tensor | None = None


class AdvantageWeighting(ABC):
    """Weights the members of a group by their advantages."""

    cancels_partition: ClassVar[bool] = False
    """Whether sum_i sign(A_i) * w_i = 0 in every group, so that the partition function cancels exactly."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return weights [G] >= 0 from the advantages and rewards, float64 [G], of one group's scored members."""

    def group_weights(self, group: WeighedGroup) -> Tensor:
        """Return weights [G] >= 0 from all that is known of a group; by default `weights` of advantages and rewards.

        For weightings that look at the media or at several rewards. The engine calls only this method.
        """
        return self.weights(group.advantages, group.rewards)

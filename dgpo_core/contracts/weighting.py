"""The contract of weightings: advantages to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdvantageWeighting"]


class AdvantageWeighting(ABC):
    """How strongly each member of a group counts."""

    cancels_partition: ClassVar[bool] = False
    """Whether sum_i sign(A_i) * w_i = 0 in every group, so that the partition function cancels exactly."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Advantages and rewards, float64 [G] of one group's scored members, to weights >= 0 [G]."""

"""The advantage weighting contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdvantageWeighting"]


class AdvantageWeighting(ABC):
    """Weights the members of a group by their advantages."""

    cancels_partition: ClassVar[bool] = False
    """Whether sum_i sign(A_i) * w_i = 0 in every group, so that the partition function cancels exactly."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Return weights [G] >= 0 from the advantages and rewards, float64 [G], of one group's scored members."""

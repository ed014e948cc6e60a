"""What a reward is like, as a message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel

from dgpo_core import __version__
from dgpo_core.placement.messages import plain
from dgpo_schemas.service import PROTOCOL, RewardDescription, ServiceLimits

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardModel

__all__ = ["describe"]


def describe(use: str, reward: RewardModel, limits: ServiceLimits | None = None) -> RewardDescription:
    """A reward that was built."""
    low, high = (float(bound) if math.isfinite(bound) else None for bound in reward.range)
    options = reward.options
    return RewardDescription(
        protocol=PROTOCOL,
        dgpo=__version__,
        use=use,
        options=plain(options.model_dump(mode="json") if isinstance(options, BaseModel) else options or {}),
        range=(low, high),
        media=sorted(reward.media),
        group_by=reward.group_by,
        concurrency=reward.concurrency,
        limits=limits,
    )

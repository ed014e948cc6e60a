"""What a reward is like, as a message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from dgpo_core import __version__
from dgpo_core.contracts import GroupReward
from dgpo_core.errors import PluginError
from dgpo_core.training.scores import plain
from dgpo_schemas.service import PROTOCOL, RewardDescription, ServiceLimits
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardBase

__all__ = ["describe"]


def describe(use: str, reward: RewardBase, limits: ServiceLimits | None = None) -> RewardDescription:
    """A reward that was built."""
    low, high = (float(bound) if math.isfinite(bound) else None for bound in reward.range)
    return RewardDescription(
        protocol=PROTOCOL,
        dgpo=__version__,
        use=use,
        options=_options(use, reward),
        range=(low, high),
        media=sorted(reward.media),
        compares="group" if isinstance(reward, GroupReward) else "sample",
        group_by=reward.group_by,
        concurrency=reward.concurrency,
        limits=limits,
    )


def _options(use: str, reward: RewardBase) -> Any:
    """As JSON can hold them. Raises PluginError for what has no end."""
    options = reward.options
    try:
        if not isinstance(options, BaseModel):
            return plain(options or {})
        try:
            return plain(options.model_dump(mode="json", warnings=False))
        except PydanticSerializationError:  # a field that pydantic cannot write, such as a dtype
            return plain(options.model_dump(warnings=False))
    except Exception as error:
        raise PluginError(f"reward {use}: its options cannot be written: {error_text(error)}") from error

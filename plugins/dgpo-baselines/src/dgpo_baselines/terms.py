"""Code shared by the objectives: the KL term, PPO's clip, and the check for settings without effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["Clipped", "clipped_gain", "refuse_unused", "velocity_kl"]


def velocity_kl(predictions: Predictions) -> Tensor:
    """Return mean (v - v_base)^2, [B], with the model's loss weight: the engine's KL term, with gradient."""
    assert predictions.base is not None
    return predictions.error(predictions.velocity, predictions.base)


@dataclass(frozen=True, slots=True)
class Clipped:
    """PPO's objective [B], to be maximized, and whether clipping set its gradient to zero, bool [B]."""

    gain: Tensor
    is_clipped: Tensor


def clipped_gain(ratio: Tensor, advantage: Tensor, clip: float) -> Clipped:
    """Return min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) per member (PPO, arXiv 1707.06347, eq. 7)."""
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    beyond = torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    return Clipped(gain, (beyond & (advantage != 0)).detach())


def refuse_unused(section: ObjectiveSection, *keys: str) -> None:
    """Raise UserError if one of these keys, which have no effect, is set.

    Accepts values that disable a feature (null, false) and the default.
    """
    for key in keys:
        value = getattr(section, key)
        if value not in (None, False, type(section).model_fields[key].default):
            raise UserError(f"objective.{key}: {value} has no effect on objective: {section.use}; leave it out")

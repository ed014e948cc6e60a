"""Code shared by the objectives: errors, the KL term, PPO's clip, and the check for settings without effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.sections.training import ObjectiveSection

__all__ = ["Clipped", "clipped_gain", "refuse_unused", "self_normalized_error", "velocity_kl"]

SMALLEST = 1e-5
"""Lower bound of the mean magnitude by which a self-normalized error is divided (the value of the authors' code)."""


def self_normalized_error(predictions: Predictions, velocity: Tensor, *, of_x0: bool) -> Tensor:
    """Return the error of a velocity divided by its own mean magnitude, [B], with gradient through the error only.

    of_x0: the error of x0^ = x_sigma - sigma * v, mean (x0^ - x0)^2 / mean |x0^ - x0| (DiffusionNFT, arXiv 2509.16117,
    and arXiv 2602.04663), which is sigma times that of the velocity, mean (v - target)^2 / mean |v - target|
    (arXiv 2603.14128). Means are over the latent's dimensions.
    """
    p = predictions
    square = p.error(velocity, p.target)
    magnitude = (velocity - p.target).detach().abs().flatten(1).mean(1)
    if not of_x0:
        return square / magnitude.clamp(min=SMALLEST)
    return p.sigma.square() * square / (p.sigma * magnitude).clamp(min=SMALLEST)


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

    Accepts values that disable a feature (null, false) and the default. The references `start` and `reset` have an
    effect on any objective with a KL term, which uses their weights.
    """
    for key in keys:
        value = getattr(section, key)
        if key == "reference" and value in ("start", "reset") and section.kl > 0:
            continue
        if value not in (None, False, type(section).model_fields[key].default):
            raise UserError(f"objective.{key}: {value} has no effect on objective: {section.use}; leave it out")

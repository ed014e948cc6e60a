"""The two transformers of Wan 2.2 A14B: one for high noise, from `boundary_ratio` on, and `transformer_2` below it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_wan.options import Expert

__all__ = ["expert_times", "has_experts", "trained_transformer"]


def has_experts(index: Index) -> bool:
    """Whether a checkpoint has both transformers. Raises UserError for a boundary without the second one."""
    boundary = index.number("boundary_ratio") is not None
    if boundary and index.part("transformer_2") is None:
        raise UserError(f"backbone.checkpoint: {index.path} has a boundary_ratio but no transformer_2")
    return boundary


def trained_transformer(components: Collection[str], expert: Expert) -> str:
    """Return the subdirectory of the transformer that is trained; without experts the only one."""
    return "transformer_2" if expert == "low" and "transformer_2" in components else "transformer"


def expert_times(sigma: Tensor, boundary: float, expert: Expert) -> tuple[Tensor, str]:
    """Return which of the times sigma [B] an expert predicts (WanPipeline: high noise from the boundary on), and advice
    on how to train at those only. See `Family.belonging`."""
    high = 1000 * sigma >= 1000 * boundary
    bound = f"t_min: {boundary} or more" if expert == "high" else f"t_max: less than {boundary}"
    return high if expert == "high" else ~high, f"(backbone.options.expert: {expert}); set timesteps.{bound}"

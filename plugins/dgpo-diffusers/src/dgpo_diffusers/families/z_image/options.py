"""Options of the backbone `z-image` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Float

__all__ = ["ZImageOptions"]


class ZImageOptions(DiffusersOptions):
    """Options of Z-Image. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    distilled: bool | None = Field(
        default=None,
        description="Whether the checkpoint is distilled to be sampled without guidance, as Z-Image-Turbo; "
        "`rollout.guidance` must then be 1. Default: whether the shift of the checkpoint's scheduler is at most 3, as "
        "in Z-Image-Turbo (Z-Image has 6); nothing else in the files distinguishes them. Set it to false for a "
        "checkpoint with that scheduler whose distillation was undone.",
    )
    cfg_normalization: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        json_schema_extra={"examples": [1.0]},
        description="Largest norm of a guided velocity as a multiple of the conditional velocity's norm, per sample "
        "(`cfg_normalization` in diffusers, where true is 1; Z-Image's model card recommends it). 0 sets no limit.",
    )

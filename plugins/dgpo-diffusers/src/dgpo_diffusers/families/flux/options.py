"""Options of the backbone `flux` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Float, Int

__all__ = ["FluxOptions"]


class FluxOptions(DiffusersOptions):
    """Options of FLUX.1. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    embedded_guidance: Float = Field(
        default=3.5,
        ge=0,
        le=100,
        description="Distilled guidance of FLUX.1-dev, an input of the transformer (`guidance_scale` in diffusers' "
        "FluxPipeline); the same value is used in rollouts, training and evaluation. It is independent of "
        "`rollout.guidance`, which needs a second forward pass (`true_cfg_scale` in diffusers). FLUX.1-schnell has no "
        "distilled guidance; leave the default there.",
    )
    text_length: Int | None = Field(
        default=None,
        ge=1,
        le=512,
        json_schema_extra={"examples": [512, 256]},
        description="Number of T5 tokens per prompt (`max_sequence_length` in diffusers). Default: the length of "
        "training, which is 512, or 256 for checkpoints without distilled guidance such as FLUX.1-schnell. The model "
        "attends to padding, so another length changes the images.",
    )

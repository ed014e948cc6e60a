"""Options of the backbone `flux` (light: no torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Float, Int

__all__ = ["FluxOptions"]


class FluxOptions(DiffusersOptions):
    """What is particular to FLUX.1; the checkpoint, LoRA and precision stand in `backbone` itself."""

    embedded_guidance: Float = Field(
        default=3.5,
        ge=0,
        le=100,
        description="The guidance that FLUX.1-dev was distilled with, a number that it is given beside the time "
        "(diffusers' guidance_scale): the same in rollouts, training and evaluation. `rollout.guidance` is another "
        "one, with two passes (diffusers' true_cfg_scale). FLUX.1-schnell has none, so nothing else is allowed there.",
    )
    text_length: Int | None = Field(
        default=None,
        ge=1,
        le=512,
        json_schema_extra={"examples": [512, 256]},
        description="T5 tokens of a prompt (diffusers' max_sequence_length), by default those that the checkpoint was "
        "trained with: 512, or 256 of one without embedded guidance, as FLUX.1-schnell is. Padding is part of what the "
        "model attends to: another length draws other images.",
    )

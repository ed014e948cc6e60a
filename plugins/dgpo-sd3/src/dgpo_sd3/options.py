"""Options of the backbone (light: no torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["SD3Options"]


class SD3Options(DiffusersOptions):
    """What is particular to Stable Diffusion 3; the checkpoint, LoRA and precision stand in `backbone` itself."""

    text_length: Int = Field(
        default=128,
        ge=0,
        le=512,
        description="T5 tokens of a prompt (diffusers' max_sequence_length). 0 leaves T5 out altogether.",
    )
    drop_t5: bool = Field(
        default=False,
        description="Do not load the T5 text encoder (9 GB in bfloat16); its tokens are zeros, as in diffusers.",
    )

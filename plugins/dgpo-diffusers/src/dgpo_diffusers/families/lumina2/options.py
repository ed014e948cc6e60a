"""Options of the backbone `lumina2` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["Lumina2Options"]

SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)
"""Default of diffusers' Lumina2Pipeline."""


class Lumina2Options(DiffusersOptions):
    """Options of Lumina-Image 2.0. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    text_length: Int = Field(
        default=256,
        ge=1,
        le=4096,
        description="Maximum number of Gemma tokens per prompt, including the system prompt (`max_sequence_length` in "
        "diffusers).",
    )
    system_prompt: str = Field(
        default=SYSTEM_PROMPT,
        max_length=4000,
        description="Instruction that precedes every prompt, but not negative prompts (`system_prompt` in diffusers).",
    )
    renormalize: bool = Field(
        default=True,
        description="Whether to rescale guided velocities to the norm of the conditional ones (`cfg_normalization` in "
        "diffusers).",
    )

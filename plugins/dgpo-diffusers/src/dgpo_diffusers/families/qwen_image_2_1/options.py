"""Options of the backbone `qwen-image-2.1` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["QwenImage21Options"]


class QwenImage21Options(DiffusersOptions):
    """Options of Qwen-Image 2.1. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    text_length: Int = Field(
        default=512,
        ge=16,
        le=4096,
        json_schema_extra={"examples": [512, 1024]},
        description="Largest number of text tokens per prompt, including the eight of the chat template around it. "
        "Longer prompts are truncated, which diffusers' pipeline does not do; shorter ones are not padded, so a larger "
        "value costs nothing for them.",
    )

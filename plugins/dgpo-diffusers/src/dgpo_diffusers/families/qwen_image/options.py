"""Options of the backbone `qwen-image` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["QwenImageOptions"]


class QwenImageOptions(DiffusersOptions):
    """Options of Qwen-Image. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    text_length: Int = Field(
        default=512,
        ge=16,
        le=1024,
        json_schema_extra={"examples": [512, 1024]},
        description="Largest number of text tokens per prompt, including the five that end the chat template "
        "(`max_sequence_length` in diffusers). Longer prompts are truncated; shorter ones are not padded, so a larger "
        "value costs nothing for them.",
    )

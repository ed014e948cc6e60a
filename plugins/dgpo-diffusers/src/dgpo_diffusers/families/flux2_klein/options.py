"""Options of the backbone `flux2-klein` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["Flux2KleinOptions"]


class Flux2KleinOptions(DiffusersOptions):
    """Options of FLUX.2 klein. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    text_length: Int = Field(
        default=512,
        ge=1,
        le=512,
        description="Number of Qwen3 tokens per prompt, including the chat template (`max_sequence_length` in "
        "diffusers). The model attends to padding, so another length than that of its training, 512, changes the "
        "images.",
    )

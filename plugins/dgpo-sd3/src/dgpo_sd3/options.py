"""Options of the backbone `sd3` (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_diffusers.options import DiffusersOptions
from dgpo_schemas.base import Int

__all__ = ["SD3Options"]


class SD3Options(DiffusersOptions):
    """Options of Stable Diffusion 3. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    text_length: Int = Field(
        default=128,
        ge=0,
        le=512,
        description="Number of T5 tokens per prompt (`max_sequence_length` in diffusers); 0 disables T5.",
    )
    drop_t5: bool = Field(
        default=False,
        description="Do not load the T5 text encoder (9 GB in bfloat16); its embeddings are zeros, as in diffusers.",
    )

"""Options common to all diffusers backbones (does not import torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Int, Options

__all__ = ["DiffusersOptions"]


class DiffusersOptions(Options):
    """Options common to all diffusers backbones. The checkpoint, LoRA and dtype are keys of `backbone` itself."""

    offload_text: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Keep the text encoders in CPU memory and move them to the device only to encode prompts.",
    )
    decode_chunk: Int = Field(
        default=8,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Number of images per call of the autoencoder's decoder.",
    )
    variant: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        json_schema_extra={"examples": ["fp16", "bf16", "non_ema"]},
        description="Variant of the weight files to load (`variant` in diffusers), such as fp16 for "
        "model.fp16.safetensors. Models without this variant are loaded from their plain files. Default: the plain "
        "files, or the only variant available. It does not affect the data type, which is `backbone.dtype`.",
    )

"""Options that every backbone on diffusers has (light: no torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Int, Options

__all__ = ["DiffusersOptions"]


class DiffusersOptions(Options):
    """What is particular to diffusers; the checkpoint, LoRA and precision stand in `backbone` itself."""

    offload_text: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Keep the text encoders in host memory and bring them to the device while prompts are encoded.",
    )
    decode_chunk: Int = Field(
        default=8,
        ge=1,
        le=100_000,
        json_schema_extra=ANYTIME,
        description="Images in one call of the autoencoder's decoder.",
    )
    variant: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        json_schema_extra={"examples": ["fp16", "bf16", "non_ema"]},
        description="Which weights are read where files have several, as model.fp16.safetensors has the variant fp16. "
        "A model without this one is read as it is. By default the plain ones, or the only variant there is. The "
        "precision is `backbone.dtype`, whatever is read.",
    )

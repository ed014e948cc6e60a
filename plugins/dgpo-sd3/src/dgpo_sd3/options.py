"""Options of the backbone (light: no torch)."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Int, Options

__all__ = ["SD3Options"]


class SD3Options(Options):
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

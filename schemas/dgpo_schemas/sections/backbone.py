"""Sections about the model that is trained: weights, adapter, arithmetic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, Float, Int, StrictModel, UseBlock
from dgpo_schemas.places import PathOrName

__all__ = ["BackboneSection", "LoraSection", "PrecisionSection"]


class LoraSection(StrictModel):
    """The low-rank adapter that is trained."""

    rank: Int = Field(default=64, ge=1, le=16384, description="Rank of the adapter.")
    alpha: Float = Field(
        default=128.0, gt=0, le=1e6, description="Scale numerator: the update is multiplied by alpha / rank."
    )
    targets: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Linear layers to adapt: full names or dot-separated suffixes of names. By default the "
        "backbone's own, for sd3 and wan every attention projection, which may be more than a published recipe adapts "
        "(sd3: `attn2` too; the sd35 examples list the published ones).",
    )


class BackboneSection(UseBlock):
    """The model that is trained."""

    checkpoint: PathOrName = Field(
        min_length=1,
        description="Directory, Hub repository, or `package:NAME/path` for weights inside an installed package.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit, for a Hub repository.")
    train: Literal["lora", "full"] = Field(default="lora", description="Train a LoRA adapter, or every weight.")
    lora: LoraSection = Field(default_factory=LoraSection, description="The adapter, when `train` is `lora`.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the frozen weights; trained weights are always float32. float16 is not offered: the "
        "loss's gradients are smaller than it can hold.",
    )
    gradient_checkpointing: bool = Field(
        default=False, json_schema_extra=ANYTIME, description="Recompute activations to save memory."
    )
    compile: bool = Field(
        default=False, json_schema_extra=FROM_THERE_ON, description="Compile the model with torch.compile."
    )

    @model_serializer(mode="wrap")
    def _without_idle_lora(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A written run file must be readable again, and `lora` beside `train: full` is refused."""
        data: dict[str, Any] = dump(self)
        if self.train == "full":
            data.pop("lora", None)
        return data


class PrecisionSection(StrictModel):
    """Arithmetic of the forward and backward passes."""

    autocast: Literal["no", "bf16"] = Field(default="no", description="Mixed precision of the passes.")
    tf32: bool = Field(default=True, description="Allow TF32 matrix products on CUDA.")
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = Field(
        default="auto",
        description="Kernel of torch's scaled_dot_product_attention, for what it can take; by default torch chooses "
        "among all of them. Only `math` and `auto` work everywhere.",
    )

"""Sections about the trained model: weights, adapter, precision."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, Float, Int, StrictModel, UseBlock
from dgpo_schemas.places import PathOrName, PathText

__all__ = ["BackboneSection", "EmbeddingCacheSection", "LoraSection", "PrecisionSection"]


class LoraSection(StrictModel):
    """Configuration of the LoRA adapter."""

    rank: Int = Field(default=64, ge=1, le=16384, description="Rank of the adapter.")
    alpha: Float = Field(
        default=128.0, gt=0, le=1e6, description="Scaling: the low-rank update is multiplied by alpha / rank."
    )
    rslora: bool = Field(
        default=False,
        description="Rank-stabilized LoRA (arXiv 2312.03732): multiply the update by alpha / sqrt(rank) instead.",
    )
    dora: bool = Field(
        default=False,
        description="DoRA (arXiv 2402.09353): also train the norm of each row of the adapted weights. A forward pass "
        "computes the norms anew and is slower. It is exported to diffusers, peft and kohya, not to ComfyUI, whose "
        "formula for the norms is another.",
    )
    targets: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Linear layers to adapt: full names, or dot-separated suffixes of names. The default depends on "
        "the backbone: sd3 and wan adapt every attention projection, which may be more than a published recipe adapts "
        "(sd3 includes `attn2`; the sd35 examples list the published layers).",
    )
    init: PathText | None = Field(
        default=None,
        min_length=1,
        description="Adapter to start from: a safetensors file, or a directory with one, in the format of diffusers, "
        "peft, kohya or ComfyUI. Its scale is folded into the weights, so that alpha applies as usual; its rank may be "
        "at most `rank`. The KL term and a frozen reference still use the base model without the adapter; "
        "`objective.reference: start` makes the initial adapter the reference of both.",
    )


class EmbeddingCacheSection(StrictModel):
    """Cache of prompt embeddings on disk, shared by runs, processes and machines."""

    directory: PathText | None = Field(
        default=None,
        min_length=1,
        description="Directory of the cache, created if missing. Default: `embeddings` in $DGPO_CACHE, or in `dgpo` "
        "in $XDG_CACHE_HOME or ~/.cache.",
    )
    max_gb: Float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="Maximum size of the directory in GB (10^9 bytes), of all models together. Beyond it, the least "
        "recently used embeddings are deleted.",
    )


class BackboneSection(UseBlock):
    """The model to train, and how to train it."""

    checkpoint: PathOrName = Field(
        min_length=1,
        description="Local directory, Hugging Face Hub repository, or `package:NAME/path` for weights inside an "
        "installed package.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of the Hub repository.")
    train: Literal["lora", "full"] = Field(default="lora", description="Train a LoRA adapter, or all weights.")
    lora: LoraSection = Field(default_factory=LoraSection, description="LoRA adapter, used when `train` is `lora`.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Data type of the frozen weights; trained weights are always float32. float16 is not supported "
        "because the gradients of the loss underflow in it.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Recompute activations in the backward pass to save memory.",
    )
    compile: bool = Field(
        default=False,
        json_schema_extra=FROM_THERE_ON,
        description="Compile the model's repeated blocks with torch.compile, for fixed shapes: smaller micro-batches "
        "are filled up with copies, whose results are dropped. Compiled code is kept on disk for later runs, in "
        "`compiled` of $DGPO_CACHE, or of `dgpo` in $XDG_CACHE_HOME or ~/.cache (or in $TORCHINDUCTOR_CACHE_DIR).",
    )
    cache: EmbeddingCacheSection | None = Field(
        default=None,
        json_schema_extra=ANYTIME,
        description="Keep prompt embeddings on disk, and load text encoders only when an embedding is missing there; "
        "`{}` for the defaults. Results do not change. By default off.",
    )

    @model_serializer(mode="wrap")
    def _without_idle_lora(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `lora` if `train` is `full`: a run file with both is rejected, and a written file must load again."""
        data: dict[str, Any] = dump(self)
        if self.train == "full":
            data.pop("lora", None)
        return data


class PrecisionSection(StrictModel):
    """Numerical precision of the forward and backward passes."""

    autocast: Literal["no", "bf16"] = Field(
        default="no", description="Mixed precision (torch.autocast) of the forward and backward passes."
    )
    tf32: bool = Field(
        default=True,
        description="Allow TF32 in float32 matrix products and convolutions on CUDA: inputs are rounded to 10 bits of "
        "mantissa. With bfloat16 weights or autocast these are mostly the autoencoder's, so false decodes samples in "
        "true float32, at about five times the time of decoding. It applies to the whole process, and thus to rewards "
        "in it too.",
    )
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = Field(
        default="auto",
        description="Kernel of torch's scaled_dot_product_attention, used for the inputs that it supports; `auto` lets "
        "torch choose. Only `math` and `auto` work on every device.",
    )
    adapter: Literal["auto", "exact", "fast"] = Field(
        default="auto",
        json_schema_extra=FROM_THERE_ON,
        description="Arithmetic of the LoRA adapter. `exact`: peft's, in float32 or as autocast rounds. `fast`: "
        "products with bfloat16 copies of the float32 matrices, renewed after each update, fused with those of the "
        "frozen layers; gradients stay float32, and the network runs in bfloat16 without autocast. Requires `backbone."
        "dtype: bfloat16`; not for DoRA. `auto`: `fast` on CUDA with `backbone.dtype: bfloat16` and `autocast: bf16`, "
        "if the backbone supports it; otherwise `exact`.",
    )
    norms: Literal["auto", "exact", "fast"] = Field(
        default="auto",
        json_schema_extra=FROM_THERE_ON,
        description="Normalization layers of the network. `exact`: the model's own code. `fast`: torch's fused kernels "
        "in place of it, which round once instead of after each operation. `auto`: like `adapter`.",
    )

"""Options common to all diffusers backbones (does not import torch)."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dgpo_schemas.base import ANYTIME, Int, Options, StrictModel

__all__ = ["CACHES", "DiffusersOptions", "RolloutCache"]

CACHES = {"taylorseer": ("flux", "qwen-image")}
"""Caches of diffusers, and the backbones that they are tested with."""
REFUSED = {
    "firstblockcache": "decides for a whole batch at once, so that samples would depend on their micro-batch",
    "seacache": "decides for a whole batch at once, so that samples would depend on their micro-batch",
    "magcache": "needs ratios that are measured for one checkpoint and schedule, and is not supported",
    "pab": "needs the model's discrete timesteps, and is not supported",
    "fastercache": "guesses the unconditional prediction, and is not supported",
}
"""Other caches of diffusers, and why they cannot be used."""


def _known(cache: str) -> str:
    if cache in CACHES:
        return cache
    pairs = ", ".join(f"{name} with {' or '.join(models)}" for name, models in CACHES.items())
    raise ValueError(f"{cache!r} {REFUSED.get(cache, 'is not a known cache')}; possible: {pairs}")


class RolloutCache(StrictModel):
    """A feature cache of diffusers. TaylorSeer (arXiv 2503.06923) predicts the outputs of attention layers from earlier
    steps with a Taylor series, at most steps."""

    use: Annotated[str, AfterValidator(_known)] = Field(description="Name of the cache: taylorseer.")
    interval: Int = Field(
        default=2, ge=2, le=100, description="After the first steps, layers run at every n-th step (`cache_interval`)."
    )
    full_steps: Int = Field(
        default=3, ge=2, le=100, description="Number of first steps without prediction (`disable_cache_before_step`)."
    )
    order: Int = Field(default=1, ge=0, le=4, description="Order of the Taylor series (`max_order`).")


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
    rollout_cache: RolloutCache | None = Field(
        default=None,
        description="Feature cache of diffusers in the rollouts of training, which become faster and approximate: they "
        "are samples of a slightly different model. Losses, evaluations and other commands never use it.",
    )

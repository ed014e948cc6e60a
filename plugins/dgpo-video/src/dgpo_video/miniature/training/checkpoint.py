"""Puts the trained parts together and writes them in diffusers' format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import T5TokenizerFast

from dgpo_diffusers.libraries import library_class, quiet
from dgpo_video.miniature.training.flow import TextToVideo

if TYPE_CHECKING:
    from diffusers import WanPipeline

__all__ = ["SAMPLING_SHIFT", "assemble", "save"]

SAMPLING_SHIFT = 2.0
"""Shift of the scheduler: few steps go further when more of them are spent where the content is decided."""


def assemble(model: TextToVideo, autoencoder: AutoencoderKLWan, tokenizer: T5TokenizerFast) -> WanPipeline:
    """The pipeline, with one transformer as Wan 2.1."""
    pipeline: WanPipeline = library_class("WanPipeline")(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder.eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
        transformer=model.transformer.eval(),
    )
    return pipeline


def save(pipeline: WanPipeline, directory: Path) -> None:
    """Write safetensors: the transformer, by far the largest part, in half precision, the rest in single.

    The pipeline is left rounded where it was written rounded, so that what is scored next is what was written.
    """
    with quiet():  # which would warn that norms should stay in single precision, for computing
        pipeline.transformer.to(torch.float16)
        pipeline.save_pretrained(directory, safe_serialization=True)
        pipeline.transformer.to(torch.float32)

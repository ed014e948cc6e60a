"""Assembles the trained components of the world of moving shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import T5TokenizerFast

from dgpo_diffusers.libraries import library_class
from dgpo_miniature.moving.transformer import TextToVideo
from dgpo_miniature.training.checkpoint import SAMPLING_SHIFT

if TYPE_CHECKING:
    from diffusers import WanPipeline

__all__ = ["assemble"]


def assemble(model: TextToVideo, autoencoder: AutoencoderKLWan, tokenizer: T5TokenizerFast) -> WanPipeline:
    """Return the pipeline, with one transformer as in Wan 2.1."""
    pipeline: WanPipeline = library_class("WanPipeline")(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder.eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
        transformer=model.transformer.eval(),
    )
    return pipeline

"""Assembles the trained components and writes them in diffusers' format."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from dgpo_diffusers.libraries import quiet
from dgpo_miniature.training.transformer import TextToImage

__all__ = ["SAMPLING_SHIFT", "assemble", "save"]

SAMPLING_SHIFT = 2.0
"""Shift of the scheduler: with few steps, more of them at high noise, which determines the content, help."""


def assemble(model: TextToImage, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """Return the pipeline; both text encoders use the same tokenizer, and there is no T5."""
    return StableDiffusion3Pipeline(
        transformer=model.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
        vae=autoencoder.eval(),
        text_encoder=model.text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def save(pipeline: DiffusionPipeline, directory: Path) -> None:
    """Write safetensors: the transformer, by far the largest component, in float16, the others in float32.

    The weights of the pipeline are rounded in place, so that a later score is that of the written weights.
    """
    with quiet():  # diffusers warns that norms should be computed in float32
        pipeline.transformer.to(torch.float16)
        pipeline.save_pretrained(directory, safe_serialization=True)
        pipeline.transformer.to(torch.float32)

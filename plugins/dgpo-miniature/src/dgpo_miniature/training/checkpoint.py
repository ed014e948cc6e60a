"""Puts the trained parts together and writes them in diffusers' format."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from dgpo_diffusers.libraries import quiet
from dgpo_miniature.training.transformer import TextToImage

__all__ = ["SAMPLING_SHIFT", "assemble", "save"]

SAMPLING_SHIFT = 2.0
"""Shift of the scheduler: few steps go further when more of them are spent where the content is decided."""


def assemble(model: TextToImage, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """The pipeline; both text encoders read the same tokens, and there is no T5."""
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
    """Write safetensors: the transformer, by far the largest part, in half precision, the rest in single.

    The pipeline is left rounded where it was written rounded, so that what is scored next is what was written.
    """
    with quiet():  # which would warn that norms should stay in single precision, for computing
        pipeline.transformer.to(torch.float16)
        pipeline.save_pretrained(directory, safe_serialization=True)
        pipeline.transformer.to(torch.float32)

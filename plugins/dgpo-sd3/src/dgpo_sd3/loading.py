"""From `backbone.checkpoint` to a diffusers pipeline, with one clear message for whatever can be wrong with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers

from dgpo_core.errors import UserError
from dgpo_diffusers.checkpoints import Layout, load_model, load_pipeline, open_checkpoint
from dgpo_schemas.problems import show
from dgpo_sd3.libraries import StableDiffusion3Pipeline

if TYPE_CHECKING:
    from dgpo_diffusers.checkpoint_check import Index
    from dgpo_schemas.run import BackboneSection
    from dgpo_sd3.options import SD3Options

__all__ = ["LAYOUT", "load_sd3"]

WITHOUT_T5 = (
    "do without T5, the third text encoder: backbone.options.text_length: 0, or backbone.options.drop_t5: true for "
    "zeros in the place of its tokens"
)
LAYOUT = Layout(
    backbone="sd3",
    family="Stable Diffusion 3 and 3.5",
    pipeline=StableDiffusion3Pipeline,
    models={
        "transformer": diffusers.SD3Transformer2DModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "text_encoder_3": transformers.T5EncoderModel,
    },
    vocabularies={
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "vocab.json"),
        "tokenizer_3": ("tokenizer.json", "spiece.model"),
    },
    optional={"text_encoder_3": WITHOUT_T5, "tokenizer_3": WITHOUT_T5},
)
REAL = ("scaling_factor", "shift_factor")
CLIP = ("max_position_embeddings", "eos_token_id")
NUMBERS = {
    "transformer": ("pos_embed_max_size", "patch_size", "in_channels"),
    "vae": REAL,
    "text_encoder": CLIP,
    "text_encoder_2": CLIP,
}
"""Values of config.json that pictures and prompts are computed with."""
SHORTEST = 3
"""Tokens: a start, an end, and one between."""


def load_sd3(section: BackboneSection, options: SD3Options) -> StableDiffusion3Pipeline:
    """The pipeline on the CPU: transformer and text encoders in `section.dtype`, the autoencoder in float32, and the
    transformer in float32 too if all of it is trained.

    Only safetensors are read, never pickles. Without T5 (absent, dropped, or a text length of 0) `text_encoder_3` is
    None. Raises UserError for a checkpoint that is missing, cannot be fetched, is of another architecture, damaged or
    quantised.
    """

    def wanted(index: Index) -> list[str]:
        t5 = options.text_length > 0 and not options.drop_t5 and index.part("text_encoder_3") is not None
        return [name for name in LAYOUT.models if t5 or name != "text_encoder_3"]

    opened = open_checkpoint(section, LAYOUT, wanted=wanted, variant=options.variant)
    dtype = getattr(torch, section.dtype)
    dtypes = {"vae": torch.float32, "transformer": torch.float32 if section.train == "full" else dtype}
    models: dict[str, torch.nn.Module | None] = {"text_encoder_3": None}
    for name in opened.variants:
        models[name] = load_model(opened, name, dtypes.get(name, dtype))
    pipeline: StableDiffusion3Pipeline = load_pipeline(opened, models)
    if pipeline.vae.config.shift_factor is None:
        raise UserError(
            f"backbone.checkpoint: {opened.directory}/vae/config.json has no shift_factor, which Stable Diffusion 3's "
            "latents are defined with; give it a number"
        )
    _check_numbers(opened.directory, pipeline)
    _limit_tokens(pipeline)
    return pipeline


def _check_numbers(directory: Path, pipeline: Any) -> None:
    """Raise UserError for values that the libraries take as they are, and that stop the first picture."""
    for name, keys in NUMBERS.items():
        for key in keys:
            value = getattr(getattr(pipeline, name).config, key, None)
            real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not real or (key != "shift_factor" and value <= 0) or (key not in REAL and value != int(value)):
                allowed = "a number" if key == "shift_factor" else "a number above 0" if key in REAL else "1, 2, 3, ..."
                raise UserError(
                    f"backbone.checkpoint: {directory}/{name}/config.json: {key} is {show(value)}; allowed is {allowed}"
                )


def _limit_tokens(pipeline: Any) -> None:
    """CLIP's tokenizers cut prompts where their text encoders end reading, whatever length they were saved with: one
    without `model_max_length` has 1e30, which no tokenizer can hold."""
    longest = min(e.config.max_position_embeddings for e in (pipeline.text_encoder, pipeline.text_encoder_2))
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        length = tokenizer.model_max_length
        if not SHORTEST <= length <= longest:
            tokenizer.model_max_length = longest
        tokenizer.model_max_length = int(tokenizer.model_max_length)
    pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length

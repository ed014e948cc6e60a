"""From `backbone.checkpoint` to a diffusers pipeline, with one clear message for whatever can be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.errors import UserError
from dgpo_diffusers.checkpoints import load_model, load_pipeline, open_checkpoint
from dgpo_schemas.problems import show

if TYPE_CHECKING:
    from dgpo_diffusers.backbone import DiffusersBackbone
    from dgpo_diffusers.layout import Layout

__all__ = ["load"]

CLIP = ("max_position_embeddings", "eos_token_id")
"""Numbers of CLIP's text encoders that prompts are read with."""
FACTORS = {"scaling_factor": "a number above 0", "shift_factor": "a number"}
"""What is allowed for numbers that count nothing."""
SHORTEST = 3
"""Tokens: a start, an end, and one between."""


def load(backbone: DiffusersBackbone) -> Any:
    """The pipeline on the CPU: denoisers and text encoders in `section.dtype`, the autoencoder in float32, and the
    trained denoiser in float32 too if all of it is trained; None in the place of what is left out.

    Only safetensors are read, never pickles. Raises UserError for a checkpoint that is missing, cannot be fetched, is
    of another architecture, damaged or quantised, and for parts that do not fit each other.
    """
    section, layout = backbone.section, backbone.layout
    opened = open_checkpoint(section, layout, wanted=backbone.components, variant=backbone.options.variant)
    exact = {"vae", backbone.trained(opened.variants)} if section.train == "full" else {"vae"}
    dtypes = {name: torch.float32 if name in exact else getattr(torch, section.dtype) for name in opened.variants}
    models = {name: load_model(opened, name, dtype) for name, dtype in dtypes.items()}
    pipeline = load_pipeline(opened, models, **backbone.settings(opened.index))
    clips = [name for name in layout.encoders if name in models and layout.models[name].startswith("CLIPText")]
    _check_numbers(opened.directory, pipeline, layout, clips)
    if clips:
        _limit_tokens(pipeline, clips)
    try:
        backbone.check(pipeline, opened.directory)
    except (TypeError, AttributeError, IndexError, KeyError) as error:
        raise UserError(
            f"backbone.checkpoint: a config.json in {opened.directory} has a value of another kind than those of "
            f"{layout.family}: {error}"
        ) from error
    return pipeline


def _check_numbers(directory: Path, pipeline: Any, layout: Layout, clips: Sequence[str]) -> None:
    """Raise UserError for values that the libraries take as they are, and that stop the first picture."""
    for name, keys in [*layout.numbers.items(), *((name, CLIP) for name in clips)]:
        for key in keys:
            value: Any = getattr(getattr(pipeline, name).config, key, None)
            where = f"backbone.checkpoint: {directory}/{name}/config.json"
            if value is None and key == "shift_factor":
                raise UserError(
                    f"{where} has no shift_factor, which {layout.family}'s latents are defined with; give it a number"
                )
            real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not real or (key != "shift_factor" and value <= 0) or (key not in FACTORS and value != int(value)):
                raise UserError(f"{where}: {key} is {show(value)}; allowed is {FACTORS.get(key, '1, 2, 3, ...')}")
    _check_scales(f"backbone.checkpoint: {directory}/vae/config.json", pipeline.vae.config)


def _check_scales(where: str, config: Any) -> None:
    """Raise UserError for an autoencoder's means and standard deviations that pictures cannot be made with, where it
    has some: a number for all channels, or a list of one for each."""
    for name in ("latents_mean", "latents_std", *FACTORS):
        value: Any = getattr(config, name, None)
        if value is None:
            continue
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        real = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        if not numbers or not real or (name in ("latents_std", "scaling_factor") and min(numbers) <= 0):
            above = " above 0" if name in ("latents_std", "scaling_factor") else ""
            raise UserError(f"{where}: {name} is {show(value)}; allowed are numbers{above}, or null")


def _limit_tokens(pipeline: Any, clips: Sequence[str]) -> None:
    """CLIP's tokenizers cut prompts where their text encoders end reading, whatever length they were saved with: one
    without `model_max_length` has 1e30, which no tokenizer can hold."""
    longest = min(getattr(pipeline, name).config.max_position_embeddings for name in clips)
    for name in clips:
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        length = tokenizer.model_max_length
        tokenizer.model_max_length = int(length if SHORTEST <= length <= longest else longest)
    pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length

"""From `backbone.checkpoint` to a diffusers pipeline, with one clear message for whatever can be wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.errors import UserError
from dgpo_diffusers.checkpoints import empty_model, load_model, load_pipeline, open_checkpoint
from dgpo_diffusers.libraries import quiet
from dgpo_diffusers.quantization import QuantizedLoading
from dgpo_schemas.problems import is_number, show

if TYPE_CHECKING:
    from dgpo_diffusers.family import Family
    from dgpo_diffusers.layout import Layout

__all__ = ["Deferred", "load"]

Deferred = Mapping[str, Callable[[], torch.nn.Module]]
"""Models that are loaded later, by name: functions that load them on the CPU."""

CLIP = ("max_position_embeddings", "eos_token_id")
"""Numbers of CLIP's text encoders that prompts are read with."""
FACTORS = ("scaling_factor", "shift_factor")
"""Numbers that count nothing."""
SHORTEST = 3
"""Tokens: a start, an end, and one between."""


def load(family: Family, *, without: Collection[str] = ()) -> tuple[Any, Deferred]:
    """The pipeline on the CPU: denoisers and text encoders in `section.dtype`, the models of `Layout.exact` in float32,
    and the trained denoiser in float32 too if all of it is trained; None in the place of what is left out. Sets the
    family's `index`.

    without: models that have no weights (meta device). With `section.cache`, the encoders have none either, and are
    returned as functions that load them.
    Only safetensors are read, never pickles. Raises UserError for a checkpoint that is missing, cannot be fetched, is
    of another architecture, damaged or quantized, and for parts that do not fit each other.
    """
    section, layout = family.section, family.layout
    opened = open_checkpoint(section, layout, wanted=family.components_to_load, variant=family.options.variant)
    family.index, family.report = opened.index, opened.report
    exact = {*layout.exact, *([family.trained(opened.variants)] if section.train == "full" else [])}
    dtypes = {name: torch.float32 if name in exact else getattr(torch, section.dtype) for name in opened.variants}
    quantized = QuantizedLoading(family, opened)

    def loaded(name: str) -> torch.nn.Module:
        return quantized.check(name, load_model(opened, name, dtypes[name], **quantized.arguments(name)))

    later = layout.encoders if section.cache is not None else ()
    deferred = {name: partial(loaded, name) for name in later if name in dtypes}
    empty = {*deferred, *without}
    with quiet():
        models = {
            name: empty_model(opened, name, dtype) if name in empty else loaded(name) for name, dtype in dtypes.items()
        }
        pipeline = load_pipeline(opened, models, **family.settings(opened.index))
    clips = [name for name in layout.encoders if name in models and layout.models[name].startswith("CLIPText")]
    _check_numbers(opened.directory, pipeline, layout, clips)
    if clips:
        _limit_tokens(pipeline, clips)
    try:
        family.check(pipeline, opened.directory)
    except (TypeError, AttributeError, IndexError, KeyError) as error:
        raise UserError(
            f"backbone.checkpoint: a config.json in {opened.directory} has a value of another kind than those of "
            f"{layout.pipeline}: {error}"
        ) from error
    return pipeline, deferred


def _check_numbers(directory: Path, pipeline: Any, layout: Layout, clips: Sequence[str]) -> None:
    """Raise UserError for values that the libraries take as they are, and that stop the first image."""
    value: Any
    for name, keys in [*layout.numbers.items(), *((name, CLIP) for name in clips)]:
        config, where = getattr(pipeline, name).config, f"backbone.checkpoint: {directory}/{name}/config.json"
        for key in keys:
            value = getattr(config, key, None)
            if value is None and key == "shift_factor":
                raise UserError(
                    f"{where} has no shift_factor, which {layout.pipeline}'s latents are defined with; give it a number"
                )
            if key not in FACTORS and not (is_number(value) and value > 0 and value == int(value)):
                raise UserError(f"{where}: {key} is {show(value)}; allowed is 1, 2, 3, ...")
    # The autoencoder's means and deviations, of all channels or of each, where they are needed or it has some.
    for key in ("latents_mean", "latents_std", *FACTORS):
        value = getattr(pipeline.vae.config, key, None)
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        above = " above 0" if key in ("latents_std", "scaling_factor") else ""
        sound = bool(numbers) and all(is_number(n) and (n > 0 or not above) for n in numbers)
        if not sound and (value is not None or key in layout.numbers.get("vae", ())):
            where = f"backbone.checkpoint: {directory}/vae/config.json"
            raise UserError(f"{where}: {key} is {show(value)}; allowed is a number{above}")


def _limit_tokens(pipeline: Any, clips: Sequence[str]) -> None:
    """CLIP's tokenizers cut prompts where their text encoders end reading, whatever length they were saved with: one
    without `model_max_length` has 1e30, which no tokenizer can hold."""
    longest = min(getattr(pipeline, name).config.max_position_embeddings for name in clips)
    for name in clips:
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        length = tokenizer.model_max_length
        tokenizer.model_max_length = int(length if SHORTEST <= length <= longest else longest)
    pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length

"""From `backbone.checkpoint` to a diffusers pipeline, with one clear message for whatever can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

from dgpo_core.errors import UserError
from dgpo_core.weights import resolve_checkpoint
from dgpo_sd3.libraries import StableDiffusion3Pipeline, quiet

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection
    from dgpo_sd3.options import SD3Options

__all__ = ["load_pipeline"]

INDEX = "model_index.json"
ARCHITECTURE = "StableDiffusion3Pipeline"
MODELS: dict[str, Any] = {
    "transformer": diffusers.SD3Transformer2DModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModelWithProjection,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
    "text_encoder_3": transformers.T5EncoderModel,
}
TOKENIZERS = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "tokenizer_2": ("tokenizer.json", "vocab.json"),
    "tokenizer_3": ("tokenizer.json", "spiece.model"),
}
"""Subdirectory to the files of which one holds the vocabulary: without it transformers makes an empty tokenizer."""
UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)
UNREACHABLE = (OSError, ValueError, EntryNotFoundError)


def load_pipeline(section: BackboneSection, options: SD3Options) -> StableDiffusion3Pipeline:
    """The pipeline on the CPU: transformer and text encoders in `section.dtype`, the autoencoder in float32, and the
    transformer in float32 too if all of it is trained.

    Only safetensors are read, never pickles. Without T5 (absent, dropped, or a text length of 0) `text_encoder_3` is
    None. Raises UserError for a checkpoint that is missing, cannot be fetched, is of another architecture or damaged.
    """
    source = resolve_checkpoint(section.checkpoint)
    local = Path(source).is_dir()
    if local and section.revision is not None:
        raise UserError(
            f"backbone.revision: {section.revision} is set, but {source} is a directory; a revision is for a Hub "
            "repository: leave it out"
        )
    index = _read_index(_local_index(Path(source)) if local else _fetch_index(source, section.revision), source)
    t5 = options.text_length > 0 and not options.drop_t5 and index.get("text_encoder_3", [None])[0] is not None
    left_out: dict[str, None] = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    directory = Path(source) if local else _fetch(source, section.revision, left_out)

    dtype = getattr(torch, section.dtype)
    dtypes = {"vae": torch.float32, "transformer": torch.float32 if section.train == "full" else dtype}
    with quiet():
        models = {
            name: _load_model(directory, name, dtypes.get(name, dtype)) for name in MODELS if name not in left_out
        }
    for name, files in TOKENIZERS.items():
        if name not in left_out and not any((directory / name / file).is_file() for file in files):
            raise UserError(f"backbone.checkpoint: {directory / name} has no vocabulary: {' or '.join(files)}")
    try:
        with quiet():  # what is left are tokenizers and the scheduler
            pipeline = StableDiffusion3Pipeline.from_pretrained(directory, **models, **left_out, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(f"backbone.checkpoint: {directory} cannot be loaded: {_reason(error)}") from error
    if pipeline.vae.config.shift_factor is None:
        raise UserError(
            f"backbone.checkpoint: {directory}/vae/config.json has no shift_factor, which Stable Diffusion 3's "
            "latents are defined with; give it a number"
        )
    return pipeline


def _local_index(directory: Path) -> Path:
    path = directory / INDEX
    if not path.is_file():
        inner = sorted(str(p.parent.relative_to(directory)) for p in directory.glob(f"*/{INDEX}"))
        hint = f"; there is one in {', '.join(inner)}" if inner else ""
        raise UserError(
            f"backbone.checkpoint: {directory} has no {INDEX}{hint}; allowed is a directory in diffusers' format "
            f"({ARCHITECTURE}.save_pretrained), with the subdirectories {', '.join(MODELS)}, ..."
        )
    return path


def _read_index(path: Path, source: str) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"backbone.checkpoint: {path} is not a pipeline's index: {error!r}") from error
    if found != ARCHITECTURE:
        raise UserError(
            f"backbone.checkpoint: {source} holds a {found}; the backbone sd3 allows {ARCHITECTURE} alone "
            "(Stable Diffusion 3 and 3.5)"
        )
    return dict(index)


def _fetch_index(repository: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, INDEX, revision=revision))
    except UNREACHABLE as error:
        raise _unreachable(repository, revision, error) from error


def _fetch(repository: str, revision: str | None, left_out: dict[str, None]) -> Path:
    try:
        return Path(StableDiffusion3Pipeline.download(repository, revision=revision, use_safetensors=True, **left_out))
    except UNREACHABLE as error:
        raise _unreachable(repository, revision, error) from error


def _unreachable(repository: str, revision: str | None, error: Exception) -> UserError:
    at = f" at revision {revision}" if revision else ""
    return UserError(
        f"backbone.checkpoint: {repository} is no directory here, and as a Hub repository{at} it cannot be fetched: "
        f"{_reason(error)} (a gated model wants its licence accepted and `hf auth login`)"
    )


def _load_model(directory: Path, name: str, dtype: torch.dtype) -> torch.nn.Module:
    kind = MODELS[name]
    where = f"backbone.checkpoint: {directory / name}"
    try:
        model, info = kind.from_pretrained(
            directory,
            subfolder=name,
            torch_dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except UNREADABLE as error:
        raise UserError(f"{where} cannot be loaded as {kind.__name__}: {_reason(error)}") from error
    # The libraries would fill these with random numbers and go on.
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of the weights of {kind.__name__}, among them {missing[0]}")
    assert isinstance(model, torch.nn.Module)
    return model


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Checkpoints in diffusers' format, whatever the architecture: finding, fetching and reading their parts.

Nothing here knows of Wan; `loading` says what a Wan checkpoint consists of. Only safetensors are read, never pickles.
Whatever can be wrong is a UserError of one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

from dgpo_core.errors import UserError
from dgpo_core.weights import resolve_checkpoint
from dgpo_wan.libraries import quiet

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection

__all__ = ["Layout", "Opened", "load_model", "load_pipeline", "open_checkpoint"]

INDEX = "model_index.json"
UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)
UNREACHABLE = (OSError, ValueError, EntryNotFoundError)


@dataclass(frozen=True, slots=True)
class Layout:
    """What checkpoints of an architecture consist of.

    backbone: the name in a run file; pipeline: diffusers' class; models: subdirectory to class; vocabularies:
    a tokenizer's subdirectory to the files of which one holds its vocabulary, without which transformers would make
    an empty tokenizer; family: the models in words.
    """

    backbone: str
    family: str
    pipeline: Any
    models: Mapping[str, Any]
    vocabularies: Mapping[str, Sequence[str]]

    @property
    def architecture(self) -> str:
        """The class's name, which a checkpoint's index holds."""
        name: str = self.pipeline.__name__
        return name


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint on this machine, and its index."""

    directory: Path
    index: Mapping[str, Any]

    def has(self, part: str) -> bool:
        """Whether the index lists a part (`null` stands for one that is left out)."""
        return (self.index.get(part) or [None])[0] is not None


def open_checkpoint(section: BackboneSection, layout: Layout) -> Opened:
    """Find or fetch the checkpoint that `section` names, and read its index.

    Raises UserError for one that is missing, cannot be fetched, or is of another architecture.
    """
    source = resolve_checkpoint(section.checkpoint)
    if Path(source).is_dir():
        if section.revision is not None:
            raise UserError(
                f"backbone.revision: {section.revision} is set, but {source} is a directory; a revision is for a Hub "
                "repository: leave it out"
            )
        return Opened(Path(source), _read_index(_index_in(Path(source), layout), source, layout))
    revision = section.revision
    # The index first: it is a few lines, and tells whether the rest is wanted.
    path = _fetched(section, lambda: hf_hub_download(source, INDEX, revision=revision))
    index = _read_index(path, source, layout)
    return Opened(
        _fetched(section, lambda: layout.pipeline.download(source, revision=revision, use_safetensors=True)), index
    )


def _fetched(section: BackboneSection, fetch: Callable[[], str | Path]) -> Path:
    try:
        return Path(fetch())
    except UNREACHABLE as error:
        at = f" at revision {section.revision}" if section.revision else ""
        raise UserError(
            f"backbone.checkpoint: {section.checkpoint} is no directory here, and as a Hub repository{at} it cannot be "
            f"fetched: {_reason(error)} (a gated model wants its licence accepted and `hf auth login`)"
        ) from error


def _index_in(directory: Path, layout: Layout) -> Path:
    path = directory / INDEX
    if path.is_file():
        return path
    inner = sorted(str(p.parent.relative_to(directory)) for p in directory.glob(f"*/{INDEX}"))
    hint = f"; there is one in {', '.join(inner)}" if inner else ""
    raise UserError(
        f"backbone.checkpoint: {directory} has no {INDEX}{hint}; allowed is a directory in diffusers' format "
        f"({layout.architecture}.save_pretrained), with the subdirectories {', '.join(layout.models)}, ..."
    )


def _read_index(path: Path, source: str, layout: Layout) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"backbone.checkpoint: {path} is not a pipeline's index: {error!r}") from error
    if found != layout.architecture:
        raise UserError(
            f"backbone.checkpoint: {source} holds a {found}; the backbone {layout.backbone} allows "
            f"{layout.architecture} alone ({layout.family})"
        )
    return dict(index)


def load_model(
    opened: Opened, layout: Layout, name: str, dtype: torch.dtype, *, tied: Sequence[str] = ()
) -> torch.nn.Module:
    """One model of a checkpoint on the CPU. tied: weights that are another name for one which is there.

    Raises UserError if it is absent or damaged, or lacks a weight: the libraries would fill it with random numbers.
    """
    kind, directory = layout.models[name], opened.directory
    where = f"backbone.checkpoint: {directory / name}"
    try:
        # What is missing is said below, what is tied is not missing. Some classes draw weights before they are read.
        with quiet(), torch.random.fork_rng(devices=[]):
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
    missing = sorted(set(info["missing_keys"]) - set(tied))
    if missing:
        raise UserError(f"{where} lacks {len(missing)} of the weights of {kind.__name__}, among them {missing[0]}")
    assert isinstance(model, torch.nn.Module)
    return model


def load_pipeline(opened: Opened, layout: Layout, models: Mapping[str, torch.nn.Module | None]) -> Any:
    """The pipeline of these models (None: left out) with the checkpoint's tokenizers and scheduler.

    Raises UserError for a tokenizer without vocabulary, or damaged files.
    """
    directory = opened.directory
    for name, files in layout.vocabularies.items():
        if not any((directory / name / file).is_file() for file in files):
            raise UserError(f"backbone.checkpoint: {directory / name} has no vocabulary: {' or '.join(files)}")
    try:
        with quiet():
            return layout.pipeline.from_pretrained(directory, **models, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(f"backbone.checkpoint: {directory} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

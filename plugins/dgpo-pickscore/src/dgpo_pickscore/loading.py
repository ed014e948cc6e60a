"""Load networks from names and paths; every mismatch is an error that names it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from dgpo_core.errors import UserError
from dgpo_core.weights import (
    check_file,
    check_weights,
    locate,
    read_json,
    refuse_quantized,
    unreachable,
    where_instead,
)
from dgpo_pickscore.images import Preprocessing
from dgpo_pickscore.libraries import quiet

__all__ = [
    "UNREADABLE",
    "check_keys",
    "commit",
    "fetch",
    "file_in",
    "load_clip",
    "load_model",
    "load_preprocessing",
    "load_tokenizer",
    "read_tensors",
    "reason",
]

UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, pickle.UnpicklingError, EOFError)
FORMS = "a directory or a Hub repository (owner/name)"
WEIGHTS = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "tokenizer*.json", "special_tokens_map.json",
             "vocab.json", "vocab.txt", "merges.txt", "spiece.model")  # fmt: skip
"""Files to download: many repositories contain the same weights in several formats of gigabytes each."""
BENIGN = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
"""Counters 0, 1, 2, ... that older versions of transformers saved with the weights."""


def fetch(source: str, revision: str | None, where: str, patterns: Sequence[str]) -> Path:
    """Return the directory `source`, or download the files of a Hub repository that match `patterns`.

    A directory takes precedence over a repository of the same name. Raises UserError, prefixed with `where`, if the
    path does not exist, if a revision is set for a directory, or if the repository cannot be downloaded.
    """
    directory = locate(source, where, forms=FORMS)
    if directory is not None:
        if revision is not None:
            raise UserError(f"{where}: {source} is a directory; a revision is for a Hub repository: leave it out")
        return directory
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # of the Hub's client, or of its network library
        raise unreachable(where, source, revision, error) from error


def commit(directory: Path, revision: str | None) -> str | None:
    """Return the commit of a directory in the Hub's cache, else `revision`."""
    return directory.name if directory.parent.name == "snapshots" else revision


def file_in(source: str, name: str, revision: str | None, where: str) -> Path:
    """Return the file `source`, or the file `name` in a directory or Hub repository; see `fetch`. Raises UserError if
    it is missing or damaged."""
    path = Path(source).expanduser()
    if os.path.isfile(path):
        if revision is not None:
            raise UserError(f"{where}: {source} is a file; a revision is for a Hub repository: leave it out")
    else:
        path = fetch(source, revision, where, [name]) / name
    check_file(path, where)
    return path


def load_clip(directory: Path, where: str) -> Any:
    """Load the `CLIPModel` in a directory; see `load_model`."""
    return load_model(directory, where, "clip", CLIPModel)


def load_model(directory: Path, where: str, model_type: str, architecture: Any) -> Any:
    """Load the model in a directory, float32 on the CPU.

    architecture: its class in transformers; model_type: the name of it in config.json.
    Reads only safetensors, never pickles. Raises UserError for another architecture, a damaged file, and missing,
    unexpected or mismatched weights, naming them.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{where}: {directory} has no config.json{where_instead(directory, file.name)}")
    config = read_json(file, where)
    kind = config.get("model_type")
    if kind != model_type:
        raise UserError(f"{where}: {directory} contains a model of type {kind}; expected {model_type}")
    refuse_quantized(config, file, where)
    variant = check_weights(directory, "model", where)
    try:
        with quiet():
            model, info = architecture.from_pretrained(
                directory,
                torch_dtype=torch.float32,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed in `info` and reported below
                local_files_only=True,
            )
    except UNREADABLE as error:
        name = architecture.__name__
        raise UserError(f"{where}: {directory} cannot be loaded as {name}: {reason(error)}") from error
    _refuse(
        f"{where}: the weights in {directory}",
        missing=set(info["missing_keys"]) - BENIGN,
        unexpected=set(info["unexpected_keys"]) - BENIGN,
        mismatched={key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]},
    )
    return model


def load_tokenizer(
    directory: Path, where: str, kind: Any = CLIPTokenizer, files: Sequence[str] = ("tokenizer.json", "vocab.json")
) -> Any:
    """Load a tokenizer, CLIP's by default. Raises UserError without a vocabulary, for which transformers builds an
    empty one.

    kind: its class in transformers; files: names of vocabularies, of which it needs one.
    """
    if not any((directory / name).is_file() for name in files):
        raise UserError(f"{where}: {directory} has no vocabulary: {' or '.join(files)}")
    for name in files:
        if (directory / name).exists():
            check_file(directory / name, where)
    try:
        with quiet():
            return kind.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UserError(f"{where}: the tokenizer of {directory} cannot be loaded: {reason(error)}") from error


def load_preprocessing(directory: Path, where: str, *, crops: bool = True) -> Preprocessing:
    """Read preprocessor_config.json, or the processor_config.json that newer versions of transformers save.
    Raises UserError if the file or a key is missing, malformed or unsupported."""
    file = directory / "preprocessor_config.json"
    if file.is_file():
        config = read_json(file, where)
    else:
        file = directory / "processor_config.json"
        if not file.is_file():
            raise UserError(f"{where}: {directory} has no preprocessor_config.json")
        config = read_json(file, where).get("image_processor", {})
    try:
        return Preprocessing.from_config(config, crops=crops)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: {file}: {reason(error)}") from error


def read_tensors(path: Path, where: str, inside: str | None = None) -> Mapping[str, Tensor]:
    """Read tensors by name from a .safetensors file, or from a pickle with `weights_only`, which executes no code.

    inside: key of the tensors in a pickle that has it. Raises UserError if the file has anything else.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{where}: {path} cannot be read: {reason(error)}") from error
    if inside is not None and isinstance(tensors, Mapping):
        tensors = tensors.get(inside, tensors)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{where}: {path} is not a mapping of names to tensors")
    return tensors


def check_keys(what: str, expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError, beginning with `what`, unless the tensors have the expected names and shapes."""
    _refuse(
        what,
        missing=expected.keys() - tensors.keys(),
        unexpected=tensors.keys() - expected.keys(),
        mismatched={key for key in expected.keys() & tensors.keys() if expected[key] != tensors[key].shape},
    )


def _refuse(what: str, *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise UserError for mismatched keys, which the libraries would ignore or initialize at random."""
    problems = [
        f"{kind} {', '.join(sorted(keys)[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for kind, keys in [
            ("missing:", set(missing)),
            ("unexpected:", set(unexpected)),
            ("wrong shape:", set(mismatched)),
        ]
        if keys
    ]
    if problems:
        raise UserError(f"{what} do not match the model; {'; '.join(problems)}")


def reason(error: Exception) -> str:
    """Return the first line of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Load networks of transformers from the checkpoint that a detector's option names, with a clear message for every
error. Importing this imports no model library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dgpo_core.errors import UserError
from dgpo_core.weights import (
    check_file,
    check_weights,
    file_digest,
    locate,
    read_json,
    refuse_quantized,
    unreachable,
    where_instead,
)
from dgpo_geneval.classes import CLASSES, geneval_name
from dgpo_schemas.text import error_text

__all__ = ["Checkpoint", "check_names", "find_checkpoint", "load_network", "origin", "quiet", "read"]

T = TypeVar("T")
FORMS = "a directory or a Hub repository (owner/name)"
TRAINING_ONLY = "criterion."
"""Buffers of the training loss, which old checkpoints may lack."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint. here: the option, for messages; source: a directory or repository, as transformers expects it;
    where: its description for messages; variant: that of the weights of a directory."""

    here: str
    source: str
    where: str
    revision: str | None
    variant: str | None


def find_checkpoint(detector: str, checkpoint: str, revision: str | None) -> Checkpoint:
    """Find what the options `checkpoint` and `revision` of a detector name, and check the files of a directory.

    Raises UserError if it cannot be found, or if files of a directory are missing, damaged or quantized.
    """
    here = f"detector {detector}: checkpoint"
    path = locate(checkpoint, here, forms=FORMS)
    if path is None:
        at = f" at revision {revision}" if revision else ""
        return Checkpoint(here, checkpoint, f"the Hub repository {checkpoint}{at}", revision, None)
    if revision is not None:
        raise UserError(
            f"detector {detector}: revision {revision} is set, but {path} is a directory; a revision is for a Hub "
            "repository: leave it out"
        )
    return Checkpoint(here, str(path), str(path), None, _checked(path, here))


def _checked(directory: Path, here: str) -> str | None:
    """Return the variant of the weights in a directory; None for the default. Also accepts pytorch_model.bin, of which
    only tensors are loaded. Raises UserError if files are missing, damaged or quantized."""
    config = directory / "config.json"
    if not config.is_file():
        raise UserError(f"{here}: {directory} has no config.json{where_instead(directory, config.name)}")
    refuse_quantized(read_json(config, here), config, here)
    pickle = directory / "pytorch_model.bin"
    if pickle.is_file() and not any(directory.glob("model*.safetensors")):
        check_file(pickle, here)
        return None
    return check_weights(directory, "model", here)


def read(checkpoint: Checkpoint, load: Callable[..., T], **settings: Any) -> T:
    """Call a `from_pretrained` of transformers on the checkpoint, quietly. Raises UserError if it fails."""
    try:
        with quiet():
            return load(checkpoint.source, revision=checkpoint.revision, **settings)
    except Exception as error:  # the libraries raise what they like
        raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: Checkpoint, error: Exception) -> UserError:
    cause: BaseException | None = error
    while cause is not None:  # transformers wraps the errors of the Hub client
        if type(cause).__module__.startswith("huggingface_hub"):
            return unreachable(checkpoint.here, checkpoint.source, checkpoint.revision, cause)
        cause = cause.__cause__
    message = error_text(error).removeprefix(f"{type(error).__name__}: ")
    first = next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{checkpoint.here}: {checkpoint.where} cannot be loaded: {first}")


def origin(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what was loaded, for `provenance`: the checkpoint, and the commit of a repository, from the Hub's cache,
    or the digests of the weight files of a directory."""
    directory = Path(checkpoint.source)
    if not directory.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(checkpoint.source, "config.json", revision=checkpoint.revision)
        commit = Path(cached).parent.name if isinstance(cached, str) else checkpoint.revision
        return {"checkpoint": checkpoint.source} | ({} if commit is None else {"revision": commit})
    files = sorted(directory.glob("model*.safetensors")) or [directory / "pytorch_model.bin"]
    digests = ", ".join(f"{file.name} {file_digest(file).digest}" for file in files)
    return {"checkpoint": directory.name, "weights": digests}


def load_network(checkpoint: Checkpoint, kind: Any, architecture: str, dtype: str) -> Any:
    """Load a network of a class of transformers on the CPU, in evaluation mode.

    Raises UserError if it cannot be read, or if weights are missing or have another shape, which would keep random
    values.
    """
    # Mismatched shapes are reported below with the missing weights. The random state is restored because the library
    # initializes missing weights with random numbers.
    with torch.random.fork_rng(devices=[]):
        network, info = read(
            checkpoint,
            kind.from_pretrained,
            variant=checkpoint.variant,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_loaded(checkpoint, info, architecture)
    return network.eval().requires_grad_(False)


def _check_loaded(checkpoint: Checkpoint, info: Mapping[str, Any], architecture: str) -> None:
    here, where = checkpoint.here, checkpoint.where
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(TRAINING_ONLY))
    if missing:
        raise UserError(f"{here}: {where} lacks {len(missing)} weights of {architecture}: {_some(missing)}")
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{here}: {where} has {len(mismatched)} weights whose shape differs from config.json: {_some(mismatched)}"
        )


def check_names(checkpoint: Checkpoint, labels: Mapping[int, str], *, subset: bool) -> tuple[str, ...]:
    """Return GenEval's class names by class index. Raises UserError if some are missing, unless `subset`."""
    names = tuple(geneval_name(labels.get(number, "N/A")) for number in range(max(labels, default=-1) + 1))
    missing = [name for name in CLASSES if name not in names]
    here, where = checkpoint.here, checkpoint.where
    if len(missing) == len(CLASSES):
        raise UserError(f"{here}: {where} has none of GenEval's classes; its classes are {', '.join(names[:5])}, ...")
    if missing and not subset:
        raise UserError(
            f"{here}: {where} lacks {len(missing)} of GenEval's 80 classes: {', '.join(missing)}. It may use names "
            "that are not recognized; to accept the checkpoint without these classes, set `subset: true`"
        )
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and progress bars of transformers; its settings are restored on exit. This module checks the
    checkpoint itself and reports each problem once."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

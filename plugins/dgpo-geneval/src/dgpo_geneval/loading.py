"""Load the Mask2Former that the option `checkpoint` names, with a clear message for every error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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
from dgpo_geneval.classes import CLASSES, geneval_name
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_geneval.options import Mask2FormerOptions

__all__ = ["Loaded", "load"]

HERE = "detector mask2former: checkpoint"
ARCHITECTURE = "Mask2FormerForUniversalSegmentation"
FORMS = "a directory or a Hub repository (owner/name)"
TRAINING_ONLY = "criterion."
"""Buffers of the training loss, which old checkpoints may lack."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, GenEval's class names by class index, and its normalization per channel:
    (pixels in [0, 1] * `scale` - `mean`) / `std`."""

    network: torch.nn.Module
    names: tuple[str, ...]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load(options: Mask2FormerOptions) -> Loaded:
    """Load the network on the CPU, in the dtype of the options and in evaluation mode.

    Raises UserError if transformers or scipy is missing, or if the checkpoint cannot be found, downloaded or read, has
    another architecture, missing weights or weights of another shape, or lacks GenEval's classes.
    """
    try:
        import scipy.optimize  # noqa: F401 - transformers' Mask2Former cannot be built without it
        from transformers import AutoConfig, Mask2FormerForUniversalSegmentation
        from transformers.image_processing_utils import BaseImageProcessor
    except ImportError as error:
        raise UserError(
            f"detector mask2former needs transformers and scipy: pip install 'dgpo-geneval[mask2former]' ({error})"
        ) from error
    source, where = _source(options)
    variant = _checked(Path(source)) if Path(source).is_absolute() else None
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(source, revision=options.revision)
            pixels, _ = BaseImageProcessor.get_image_processor_dict(source, revision=options.revision)
        except Exception as error:  # the libraries raise what they like
            raise _unreadable(options, where, error) from error
        if ARCHITECTURE not in (config.architectures or ()):
            found = ", ".join(config.architectures or ()) or config.model_type
            raise UserError(f"{HERE}: {where} contains {found}; expected {ARCHITECTURE} for instance segmentation")
        names = _names(config.id2label, where, subset=options.subset)
        try:
            # Mismatched shapes are reported below with the missing weights. The random state is restored because the
            # library initializes missing weights with random numbers.
            with torch.random.fork_rng(devices=[]):
                network, info = Mask2FormerForUniversalSegmentation.from_pretrained(
                    source,
                    revision=options.revision,
                    variant=variant,
                    dtype=getattr(torch, options.dtype),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except Exception as error:  # the libraries raise what they like
            raise _unreadable(options, where, error) from error
    _check_weights(info, where)
    scale, mean, std = _normalization(pixels)
    return Loaded(network.eval().requires_grad_(False), names, scale, mean, std)


def _source(options: Mask2FormerOptions) -> tuple[str, str]:
    """Return the source as transformers expects it and its description for messages."""
    path = locate(options.checkpoint, HERE, forms=FORMS)
    if path is not None:
        if options.revision is not None:
            raise UserError(
                f"detector mask2former: revision {options.revision} is set, but {path} is a directory; a revision is "
                "for a Hub repository: leave it out"
            )
        return str(path), str(path)
    at = f" at revision {options.revision}" if options.revision else ""
    return options.checkpoint, f"the Hub repository {options.checkpoint}{at}"


def _checked(directory: Path) -> str | None:
    """Return the variant of the weights in a directory; None for the default. Also accepts pytorch_model.bin, of which
    only tensors are loaded. Raises UserError if files are missing, damaged or quantized."""
    config = directory / "config.json"
    if not config.is_file():
        raise UserError(f"{HERE}: {directory} has no config.json{where_instead(directory, config.name)}")
    refuse_quantized(read_json(config, HERE), config, HERE)
    pickle = directory / "pytorch_model.bin"
    if pickle.is_file() and not any(directory.glob("model*.safetensors")):
        check_file(pickle, HERE)
        return None
    return check_weights(directory, "model", HERE)


def _unreadable(options: Mask2FormerOptions, where: str, error: Exception) -> UserError:
    cause: BaseException | None = error
    while cause is not None:  # transformers wraps the errors of the Hub client
        if type(cause).__module__.startswith("huggingface_hub"):
            return unreachable(HERE, options.checkpoint, options.revision, cause)
        cause = cause.__cause__
    message = error_text(error).removeprefix(f"{type(error).__name__}: ")
    first = next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{HERE}: {where} cannot be loaded: {first}")


def _names(labels: Mapping[int, str], where: str, *, subset: bool) -> tuple[str, ...]:
    """Return GenEval's class names by class index."""
    names = tuple(geneval_name(labels[number]) for number in range(len(labels)))
    missing = [name for name in CLASSES if name not in names]
    if len(missing) == len(CLASSES):
        raise UserError(f"{HERE}: {where} has none of GenEval's classes; its classes are {', '.join(names[:5])}, ...")
    if missing and not subset:
        raise UserError(
            f"{HERE}: {where} lacks {len(missing)} of GenEval's 80 classes: {', '.join(missing)}. It may use names "
            "that are not recognized; to accept the checkpoint without these classes, set `subset: true`"
        )
    return names


def _check_weights(info: Mapping[str, Any], where: str) -> None:
    """Raise UserError for missing or mismatched weights, which would keep random values."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(TRAINING_ONLY))
    if missing:
        raise UserError(f"{HERE}: {where} lacks {len(missing)} weights of {ARCHITECTURE}: {_some(missing)}")
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{HERE}: {where} has {len(mismatched)} weights whose shape differs from config.json: {_some(mismatched)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _normalization(
    pixels: Mapping[str, Any],
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """Return the processor's scale, mean and std for pixels in [0, 1] instead of 0 to 255."""
    scale = 255.0 * pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 255.0
    if not pixels.get("do_normalize", True):
        return scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = pixels.get("image_mean", (0.485, 0.456, 0.406)), pixels.get("image_std", (0.229, 0.224, 0.225))
    return scale, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


@contextmanager
def _quiet() -> Iterator[None]:
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

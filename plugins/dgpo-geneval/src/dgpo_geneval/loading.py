"""From the option `checkpoint` to a Mask2Former, with one clear message for whatever can be wrong with it."""

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
    """A network, GenEval's name of each of its classes by their number, and how it wants its pixels: values in [0, 1]
    times `scale`, less `mean`, over `std`, by channel."""

    network: torch.nn.Module
    names: tuple[str, ...]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load(options: Mask2FormerOptions) -> Loaded:
    """The network on the CPU, in the dtype of the options, not training.

    Raises UserError if transformers or scipy is missing, for a checkpoint that cannot be found, fetched or read, is of
    another architecture, lacks weights or has some of another shape, or does not know GenEval's classes.
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
            raise UserError(f"{HERE}: {where} holds {found}; allowed is {ARCHITECTURE}, trained for instances")
        names = _names(config.id2label, where, subset=options.subset)
        try:
            # Mismatched shapes are let through, to be named below with what else is wrong; the global random state
            # is kept, because the library would fill what is missing with random numbers.
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
    """What transformers is told, and what a person is."""
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
    """The variant of the weights that is read from a directory; None for the plain ones. Raises UserError for what is
    not there, damaged or quantized. Published weights of torch's kind are read too, as tensors alone."""
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
    while cause is not None:  # transformers tells in its own words of what the Hub's client says
        if type(cause).__module__.startswith("huggingface_hub"):
            return unreachable(HERE, options.checkpoint, options.revision, cause)
        cause = cause.__cause__
    said = error_text(error).removeprefix(f"{type(error).__name__}: ")
    first = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{HERE}: {where} cannot be loaded: {first}")


def _names(labels: Mapping[int, str], where: str, *, subset: bool) -> tuple[str, ...]:
    """GenEval's names of the classes, by their number."""
    names = tuple(geneval_name(labels[number]) for number in range(len(labels)))
    missing = [name for name in CLASSES if name not in names]
    if len(missing) == len(CLASSES):
        raise UserError(f"{HERE}: {where} knows none of GenEval's classes; it has {', '.join(names[:5])}, ...")
    if missing and not subset:
        raise UserError(
            f"{HERE}: {where} does not know {len(missing)} of GenEval's 80 classes: {', '.join(missing)}. Its other "
            "names for them are not known here; to do without them, set `subset: true`"
        )
    return names


def _check_weights(info: Mapping[str, Any], where: str) -> None:
    """Raise UserError for weights that would otherwise stay random."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(TRAINING_ONLY))
    if missing:
        raise UserError(f"{HERE}: {where} lacks {len(missing)} weights of {ARCHITECTURE}: {_some(missing)}")
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{HERE}: {where} has {len(mismatched)} weights of another shape than its config.json: {_some(mismatched)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _normalization(
    pixels: Mapping[str, Any],
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """The processor's numbers, for pixels in [0, 1] instead of its 0 to 255."""
    scale = 255.0 * pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 255.0
    if not pixels.get("do_normalize", True):
        return scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = pixels.get("image_mean", (0.485, 0.456, 0.406)), pixels.get("image_std", (0.229, 0.224, 0.225))
    return scale, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors only and no bars from transformers inside; its settings come back afterwards. What can really be wrong
    with a checkpoint is checked here, and said once."""
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

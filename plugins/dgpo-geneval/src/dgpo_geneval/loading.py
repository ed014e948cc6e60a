"""Load the Mask2Former that the option `checkpoint` names, with a clear message for every error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.errors import UserError
from dgpo_geneval.checkpoints import check_names, find_checkpoint, load_network, origin, read

if TYPE_CHECKING:
    from dgpo_geneval.options import Mask2FormerOptions

__all__ = ["Loaded", "load"]

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, GenEval's class names by class index, and its normalization per channel:
    (pixels in [0, 1] * `scale` - `mean`) / `std`; origin: what was loaded."""

    network: torch.nn.Module
    names: tuple[str, ...]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: Mapping[str, str]


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
    checkpoint = find_checkpoint("mask2former", options.checkpoint, options.revision)
    config = read(checkpoint, AutoConfig.from_pretrained)
    pixels, _ = read(checkpoint, BaseImageProcessor.get_image_processor_dict)
    if ARCHITECTURE not in (config.architectures or ()):
        found = ", ".join(config.architectures or ()) or config.model_type
        raise UserError(
            f"{checkpoint.here}: {checkpoint.where} contains {found}; expected {ARCHITECTURE} for instance segmentation"
        )
    names = check_names(checkpoint, config.id2label, subset=options.subset)
    network = load_network(checkpoint, Mask2FormerForUniversalSegmentation, ARCHITECTURE, options.dtype)
    scale, mean, std = _normalization(pixels)
    return Loaded(network, names, scale, mean, std, origin(checkpoint))


def _normalization(
    pixels: Mapping[str, Any],
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """Return the processor's scale, mean and std for pixels in [0, 1] instead of 0 to 255."""
    scale = 255.0 * pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 255.0
    if not pixels.get("do_normalize", True):
        return scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = pixels.get("image_mean", (0.485, 0.456, 0.406)), pixels.get("image_std", (0.229, 0.224, 0.225))
    return scale, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

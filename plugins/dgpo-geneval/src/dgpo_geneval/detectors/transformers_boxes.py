"""What detectors of transformers that find boxes have in common: the preprocessing, pinned to one backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_geneval.checkpoints import Checkpoint, find_checkpoint, load_network, origin, read
from dgpo_geneval.detectors.boxes import BoxDetector

if TYPE_CHECKING:
    from dgpo_geneval.detectors.options import CheckpointOptions

__all__ = ["TransformersDetector", "to_pixels"]


def to_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """Scale boxes [..., 4] (x0, y0, x1, y1) in [0, 1] to an image."""
    return boxes.float() * torch.tensor([width, height, width, height], device=boxes.device)


class TransformersDetector(BoxDetector):
    """A checkpoint of transformers and its image processor. `NAME` is the detector's name, for messages."""

    NAME: str
    options: CheckpointOptions

    def _load(self, checkpoint: str, kind: str, architectures: tuple[str, ...]) -> Checkpoint:
        """Load network and image processor. kind: class or automatic class of transformers.

        Raises UserError if transformers or the backend is missing, or if the checkpoint cannot be found, downloaded or
        read, has another architecture, missing weights or weights of another shape.
        """
        try:
            import transformers
            from transformers import AutoConfig, AutoImageProcessor

            if self.options.processor == "torchvision":
                importlib.import_module("torchvision")  # without it, transformers falls back to Pillow
        except ImportError as error:
            raise UserError(
                f"detector {self.NAME} needs transformers and torchvision: pip install 'dgpo-geneval[detectors]' "
                f"({error})"
            ) from error
        found = find_checkpoint(self.NAME, checkpoint, self.options.revision)
        config = read(found, AutoConfig.from_pretrained)
        named = (config.architectures or [config.model_type])[0]
        if named not in architectures:
            few = ", ".join(architectures)
            raise UserError(f"{found.here}: {found.where} contains {named}; expected one of {few}")
        self.config: Any = config
        self.processor: Any = read(found, AutoImageProcessor.from_pretrained, backend=self.options.processor)
        if self.processor.backend != self.options.processor:
            raise UserError(
                f"detector {self.NAME}: processor: transformers has no {self.options.processor} preprocessing for "
                f"{named}; set `processor: {self.processor.backend}`"
            )
        self.network: Any = load_network(found, getattr(transformers, kind), named, self.options.dtype)
        self.network.to(self.device)
        self.dtype: torch.dtype = getattr(torch, self.options.dtype)
        self.origin = origin(found)
        return found

    def pixels(self, image: Tensor) -> dict[str, Tensor]:
        """Preprocess an image [3, H, W] in [0, 1] as the checkpoint's processor does; returns its tensors, for one
        image, on the device, floats in the network's dtype."""
        shown: Any = image * 255
        if self.options.processor == "pil":
            shown = shown.round().to(torch.uint8).cpu().numpy()
        inputs = self.processor(images=[shown], input_data_format="channels_first", return_tensors="pt")
        return {key: self._moved(value) for key, value in inputs.items() if isinstance(value, Tensor)}

    def _moved(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

    def provenance(self) -> Mapping[str, Any]:
        """Return the thresholds, what was loaded, and what prepares the pixels."""
        return {**super().provenance(), **self.origin, "processor": type(self.processor).__name__}

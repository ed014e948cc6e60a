"""The contract of detectors: from images to labeled boxes, with the detector's thresholds. Does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from dgpo_core.types import Example

__all__ = ["Box", "ColorClassifier", "Detection", "Detector", "Thresholds"]

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels: x to the right, y downwards, x0 <= x1 and y0 <= y1. Coordinates are edges of pixels, not
centers: the box of a mask is (first column, first row, last column + 1, last row + 1)."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A detected object.

    label: one of the detector's `labels`; score: confidence, in full precision, because rounding would create ties
    between objects; compared with the detector's thresholds; color: the object's color, or None to use the color
    classifier; mask: bool [H, W], True on the object, for the classifier; None for the entire box.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of a detector, on its own scale of scores.

    score: detections must exceed it; counting: the same for prompts of the task `counting`. Scores and thresholds are
    compared in float32, as in the benchmark: a score of float32(0.3), which is 0.30000001, does not exceed 0.3.
    per_class: maximum number of detections per class, highest scores first. The defaults are GenEval's, chosen for
    mmdet's Mask2Former.
    """

    score: float = 0.3
    counting: float = 0.9
    per_class: int = 16

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {self.per_class}")

    def for_task(self, tag: str) -> float:
        """Return the score threshold for prompts of a task."""
        return self.counting if tag == "counting" else self.score


class Detector(ABC):
    """Detects objects in images. Built once per run; called from a worker thread, one call at a time."""

    labels: tuple[str, ...]
    """All possible labels, with GenEval's names ("computer mouse", "tv remote", "computer keyboard")."""
    thresholds: Thresholds = Thresholds()
    colors: tuple[str, ...] = ()
    """All possible colors of detections; empty to use the color classifier."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        self.options = options
        self.device = device

    @abstractmethod
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Detect objects in images [B, 3, H, W], RGB float in [0, 1]; returns one list per image, in any order.

        The result must contain every detection that exceeds the lowest of `thresholds`. The detections of an image must
        not depend on the other images, bit for bit: if the arithmetic depends on the batch size, as in a network,
        process images one by one. If it raises an error, the samples are missing, not scored 0.
        """

    def provenance(self) -> Mapping[str, Any]:
        """Return what detections depend on besides the options, as JSON values, for the records of suites: the digest
        of a file. By default the thresholds. Never a token or a password."""
        return asdict(self.thresholds)

    def examples(self) -> Sequence[Example]:
        """Return good and bad example images with GenEval prompts, to test rewards with this detector; may be empty."""
        return ()


class ColorClassifier(Protocol):
    """Names the colors of detected objects."""

    def __call__(self, images: Tensor, detections: Sequence[Sequence[Detection]]) -> Sequence[Sequence[str]]:
        """Return a color name for each detection. images: [B, 3, H, W], float in [0, 1]; detections: some per image."""
        ...

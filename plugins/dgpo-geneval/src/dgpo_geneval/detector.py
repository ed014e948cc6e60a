"""What a detector is: images in, labeled boxes out, with the thresholds that belong to it.

Light on purpose: importing this module does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from dgpo_core.types import Example

__all__ = ["Box", "ColorClassifier", "Detection", "Detector", "Thresholds"]

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels: x to the right, y downwards, x0 <= x1 and y0 <= y1. Edges, not centers, of pixels: the
box of a mask is (first column, first row, last column + 1, last row + 1), so its sides are its width and height."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector saw.

    label: one of the detector's `labels`; score: confidence, in the detector's full precision (rounding makes ties, and
    the best objects are those that clauses are about), compared with the detector's own thresholds;
    color: the object's color if the detector knows it, else None (a color classifier is then asked);
    mask: bool [H, W], True on the object, for that classifier; None stands for the whole box.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as seen. Scores are a detector's own scale, so these live with the detector.

    score: detections must score above it; counting: the same for prompts of the task `counting`. Score and threshold
    are compared as float32, in which the benchmark compares them: a score of float32(0.3), which is 0.30000001, is not
    above 0.3.
    per_class: at most so many detections of a class are kept, the best ones. The defaults are GenEval's,
    chosen there for mmdet's Mask2Former.
    """

    score: float = 0.3
    counting: float = 0.9
    per_class: int = 16

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class is {self.per_class}; it must be at least 1")

    def for_task(self, tag: str) -> float:
        """The threshold on scores for prompts of a task."""
        return self.counting if tag == "counting" else self.score


class Detector(ABC):
    """Finds objects in images. Built once per run; called from a worker thread, one call at a time."""

    labels: tuple[str, ...]
    """Every label it can give, in GenEval's names ("computer mouse", "tv remote", "computer keyboard")."""
    thresholds: Thresholds = Thresholds()
    colors: tuple[str, ...] = ()
    """Every color that it gives to its detections; none if it leaves colors to a classifier."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        self.options = options
        self.device = device

    @abstractmethod
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Images [B, 3, H, W], RGB float in [0, 1], to one list of detections per image, in any order.

        Nothing is left out that scores above one of `thresholds`; an image's detections do not depend on the others
        in the batch, to the last bit: where the arithmetic does (a network's does), images go through it one by one.
        It may raise: the samples are then missing, never scored 0.
        """

    def examples(self) -> Sequence[Example]:
        """Images with GenEval prompts that rewards with this detector must tell apart: good ones and bad ones, or
        none at all."""
        return ()


class ColorClassifier(Protocol):
    """Names the colors of detected objects."""

    def __call__(self, images: Tensor, detections: Sequence[Sequence[Detection]]) -> Sequence[Sequence[str]]:
        """Images [B, 3, H, W] float in [0, 1] and some detections of each, to one color name per detection."""
        ...

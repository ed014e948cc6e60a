"""From the boxes of a network to detections: suppression of duplicates, clipping, order, and a mask for colors.

Legend: N boxes (x0, y0, x1, y1) in pixels, of one image of H x W.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpo_geneval.detector import Box, Detection, Detector, Thresholds
from dgpo_geneval.photograph import photograph_examples

if TYPE_CHECKING:
    from dgpo_core.types import Example
    from dgpo_geneval.detectors.options import BoxOptions

__all__ = ["BoxDetector", "Boxes", "best_classes", "corners", "inner_mask", "suppress"]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """What a network sees in one image: box float32 [N, 4] in pixels, which may exceed the image; score float32 [N];
    label int64 [N], an index of the detector's `names`."""

    box: Floats
    score: Floats
    label: Indices


def corners(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from (center x, center y, width, height) to (x0, y0, x1, y1)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def best_classes(scores: Tensor, boxes: Tensor, *, logits: bool = False) -> Boxes:
    """Keep the best class of each box, so that an object is not seen again under its second-best name.

    scores: [N, C] of one image, or the logits of a sigmoid, among which classes are compared before it saturates;
    boxes: [N, 4] in pixels. Of equal classes, the first one is kept.
    """
    score, label = scores.float().max(-1)
    if logits:
        score = score.sigmoid()
    return Boxes(boxes.float().cpu().numpy(), score.cpu().numpy(), label.cpu().numpy())


def suppress(found: Boxes, overlap: float) -> Indices:
    """Return the indices that greedy non-maximum suppression keeps, by descending score; equal scores by index.

    A box is dropped if a better box of the same class has an intersection over union above `overlap`.
    """
    box = found.box.astype(np.float64)
    area = np.prod(box[:, 2:] - box[:, :2], axis=1)
    kept = []
    left = np.argsort(-found.score, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        near = np.maximum(box[best, :2], box[left, :2])
        far = np.minimum(box[best, 2:], box[left, 2:])
        shared = np.prod(np.clip(far - near, 0, None), axis=1)
        same = (found.label[left] == found.label[best]) & (shared > overlap * (area[best] + area[left] - shared))
        left = left[~same]
    return np.array(kept, dtype=np.int64)


def inner_mask(box: Box, size: tuple[int, int], share: float) -> NDArray[np.bool_] | None:
    """Return a mask [H, W] of the middle of a box, `share` of its width and height, at least one pixel wide and high;
    None for the entire box."""
    if share == 1:
        return None
    mask = np.zeros(size, dtype=np.bool_)
    edges = []
    for near, far, limit in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        middle, half = (near + far) / 2, (far - near) * share / 2
        first = min(max(math.floor(middle - half + 0.5), 0), limit - 1)
        edges.append((first, min(max(math.floor(middle + half + 0.5), first + 1), limit)))
    (x0, x1), (y0, y1) = edges
    mask[y0:y1, x0:x1] = True
    return mask


class BoxDetector(Detector):
    """A detector that finds boxes in one image at a time, so that they do not depend on the other images."""

    names: tuple[str | None, ...]
    """GenEval's name by class index; None for an index that is no class, whose boxes are dropped."""
    options: BoxOptions

    def __init__(self, options: BoxOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        self.thresholds = Thresholds(options.score, options.counting, options.per_class)

    @abstractmethod
    def find(self, image: Tensor) -> Boxes:
        """Return the boxes in an image [3, H, W], RGB float32 in [0, 1], before thresholds and suppression."""

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Return the detections of each image, sorted by descending score, then by label and box.

        images: [B, 3, H, W], float in [0, 1], any device. Raises ValueError if the network's output is not finite.
        """
        return [self._read(self.find(image.float()), (image.shape[-2], image.shape[-1])) for image in images]

    def _read(self, found: Boxes, size: tuple[int, int]) -> list[Detection]:
        if not (np.isfinite(found.score).all() and np.isfinite(found.box).all()):
            raise ValueError("the network returned scores or boxes that are not finite")
        named = np.array([name is not None for name in self.names])
        seen = named[found.label] & (found.score >= np.float32(min(self.thresholds.score, self.thresholds.counting)))
        found = Boxes(found.box[seen], found.score[seen], found.label[seen])
        kept: Sequence[Any] = range(len(found.score))
        if self.options.overlap is not None:
            kept = suppress(found, self.options.overlap).tolist()
        detections = [self._detection(found, index, size) for index in kept]
        visible = [one for one in detections if one.box[0] < one.box[2] and one.box[1] < one.box[3]]
        return sorted(visible, key=lambda one: (-one.score, one.label, one.box))

    def _detection(self, found: Boxes, index: int, size: tuple[int, int]) -> Detection:
        height, width = size
        edges = np.clip(found.box[index].astype(np.float64), 0, [width, height, width, height]).tolist()
        box = (edges[0], edges[1], edges[2], edges[3])
        name = self.names[found.label[index]]
        assert name is not None
        mask = inner_mask(box, size, self.options.color_box)
        return Detection(name, float(found.score[index]), box, mask=mask)

    def provenance(self) -> Mapping[str, Any]:
        """Return the thresholds, and how duplicates are dropped."""
        return {**super().provenance(), "overlap": self.options.overlap}

    def examples(self) -> Sequence[Example]:
        """Return a photograph of a person with a right and a wrong prompt, and noise."""
        return photograph_examples()

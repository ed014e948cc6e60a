"""A rule-based detector for the images of shapes; it replaces GenEval's Mask2Former.

Saturated pixels are split by hue and into connected blobs, and each blob is compared with the outlines of the known
classes. Legend: B images, K blobs, T classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dgpo_geneval.detector import Detection, Detector, Thresholds
from dgpo_miniature.captions import TASKS, TRAIN_TEMPLATES, all_captions, corrupt, metadata, scene_content, text
from dgpo_miniature.world import CLASSES, COLORS, RGB, random_scenes, render, signed_distance

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.types import Example

__all__ = ["ShapeDetector", "find_shapes"]

COVERAGE = 0.45
"""Minimum saturation (largest minus smallest channel) of a shape's pixel, as a fraction of its color's."""
MIN_AREA = 45
"""Minimum area of a blob in pixels; the smallest rendered shape has 110."""
GRID = 16
"""Size of the grid, stretched over the blob's box, on which blobs and outlines are compared."""
SURE, DOUBTFUL = 0.82, 0.52
"""Intersection over union with the outline at which the score of a blob is 1, and below which it is 0."""
SLIMMEST = 0.72
"""Minimum ratio of a blob's shorter side to its longer side."""


def class_outlines() -> NDArray[np.float32]:
    """Return masks [T, GRID²] of the classes, each stretched to its box."""
    spot = ((np.arange(GRID) + 0.5) / GRID * 2 - 1).astype(np.float32)
    boxes = {"square": (0.9, -0.9, 0.9), "triangle": (1.0, -1.0, 0.85)}
    outlines = []
    for kind, name in enumerate(CLASSES):
        half_width, top, bottom = boxes.get(name, (1.0, -1.0, 1.0))
        x = spot * np.float32(half_width)
        y = spot * np.float32((bottom - top) / 2) + np.float32((top + bottom) / 2)
        inside = signed_distance(kind, x[None, :], y[:, None], np.float32(1.0))
        outlines.append(inside.ravel() < 0)
    return np.stack(outlines).astype(np.float32)


OUTLINES = class_outlines()
HUES = (RGB - RGB.mean(axis=1, keepdims=True)) / np.linalg.norm(RGB - RGB.mean(axis=1, keepdims=True), axis=1)[:, None]
SATURATION = RGB.max(axis=1) - RGB.min(axis=1)
IN_IMAGE = np.zeros((3, 3, 3), dtype=bool)
IN_IMAGE[1] = ndimage.generate_binary_structure(2, 1)


def find_shapes(images: NDArray[np.float32], *, masks: bool = False) -> list[list[Detection]]:
    """Return the detections of each image, highest score first. images: float [B, 3, H, W] in [0, 1]."""
    height, width = images.shape[2:]
    planes, kept = _planes(images)
    found: list[list[Detection]] = [[] for _ in images]
    if not len(kept):  # `label` does not accept empty input
        return found
    labels, count = ndimage.label(planes, structure=IN_IMAGE)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or area[label] < MIN_AREA:
            continue
        plane, rows, columns = box
        blob = labels[plane.start, rows, columns] == label
        name, score = classify(blob)
        if score <= 0.0:
            continue
        image, color = divmod(int(kept[plane.start]), len(COLORS))
        mask = None
        if masks:
            mask = np.zeros((height, width), dtype=bool)
            mask[rows, columns] = blob
        corners = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        found[image].append(Detection(label=name, score=score, box=corners, color=COLORS[color], mask=mask))
    for detections in found:
        detections.sort(key=lambda detection: -detection.score)
    return found


def _planes(images: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return masks [P, H, W] of the shapes' pixels, one for each image and color that occurs, and the indices of these.

    An index is image * number of colors + color; indices are ascending. Only saturated pixels are processed further,
    which makes large, mostly empty images cheap.
    """
    saturation = images.max(axis=1) - images.min(axis=1)
    vivid = saturation > COVERAGE * SATURATION.min()
    # HUES sum to zero over channels, so the gray component of the pixels cancels in the product.
    hues = np.einsum("tc,cn->tn", HUES, images.swapaxes(0, 1)[:, vivid]).argmax(axis=0)
    place = np.full(vivid.shape, -1, dtype=np.int32)
    place[vivid] = np.where(saturation[vivid] > COVERAGE * SATURATION[hues], hues, -1)
    which = np.nonzero(place >= 0)[0] * len(COLORS) + place[place >= 0]
    kept = np.unique(which)
    image, color = np.divmod(kept, len(COLORS))
    planes = np.empty((len(kept), *vivid.shape[1:]), dtype=np.bool_)
    for i in range(len(kept)):
        np.equal(place[image[i]], color[i], out=planes[i])
    return planes, kept


def classify(blob: NDArray[np.bool_]) -> tuple[str, float]:
    """Return the class whose outline matches a blob [h, w] best, and a score in [0, 1]."""
    height, width = blob.shape
    if min(height, width) < SLIMMEST * max(height, width):
        return "", 0.0
    rows = (2 * np.arange(GRID) + 1) * height // (2 * GRID)
    columns = (2 * np.arange(GRID) + 1) * width // (2 * GRID)
    seen = blob[np.ix_(rows, columns)].ravel().astype(np.float32)
    common = OUTLINES @ seen
    overlap = common / (OUTLINES.sum(axis=1) + seen.sum() - common)
    best = int(overlap.argmax())
    return CLASSES[best], float(np.clip((overlap[best] - DOUBTFUL) / (SURE - DOUBTFUL), 0.0, 1.0))


class ShapeDetector(Detector):
    """Detects the shapes and their colors by rules, on the CPU. It has no options."""

    labels: tuple[str, ...] = CLASSES
    colors: tuple[str, ...] = COLORS
    thresholds = Thresholds(score=0.3, counting=0.3, per_class=16)

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Return the detections of each image [B, 3, H, W], float in [0, 1], any device, highest score first."""
        return find_shapes(images.detach().float().cpu().numpy())

    def examples(self) -> Sequence[Example]:
        """Return a correct scene (good) and a faulty scene (bad) for one prompt of each task, [3, 64, 64]."""
        import torch

        from dgpo_core.types import Example, Prompt

        rng = Random("examples")
        examples = []
        for task in TASKS:
            caption = rng.choice(all_captions(task))
            words = text(caption, TRAIN_TEMPLATES[0])
            prompt = Prompt(words, metadata(caption, words))
            for shown, good in ((caption, True), (corrupt(caption, rng), False)):
                kind, color = (np.array([part]) for part in scene_content(shown, rng))
                image = render(random_scenes(kind, color, np.random.default_rng(len(examples))))[0]
                name = f"{words}: {'as prompted' if good else text(shown, TRAIN_TEMPLATES[0])}"
                examples.append(Example(name, prompt, torch.from_numpy(image), good=good))
        return examples

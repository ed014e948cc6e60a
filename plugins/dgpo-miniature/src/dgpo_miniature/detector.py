"""A rule-based detector for the miniature's images: what Mask2Former is to GenEval's photographs.

Saturated pixels are split by hue, each hue into connected blobs, and each blob is compared with the outlines of the
known classes. Legend: B images, K blobs, T classes, H W pixels.
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
"""Share of its color's saturation (largest minus smallest channel) from which a pixel is part of a shape."""
MIN_AREA = 45
"""Smallest blob in pixels; the smallest shape drawn has 110."""
GRID = 16
"""Blobs and outlines are compared on a grid of this size, stretched over the blob's box."""
SURE, DOUBTFUL = 0.82, 0.52
"""Overlap (intersection over union) with the outline from which a blob's score is 1, and below which it is 0."""
SLIMMEST = 0.72
"""Smallest ratio of a blob's shorter side to its longer one."""


def class_outlines() -> NDArray[np.float32]:
    """Masks [T, GRID²] of the classes, each stretched to its own box."""
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
    """Detections of each image, float [B, 3, H, W] in [0, 1], the surest first."""
    height, width = images.shape[2:]
    planes, kept = _planes(images)
    found: list[list[Detection]] = [[] for _ in images]
    if not len(kept):  # which `label` refuses
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
    """Which pixels are of a shape, [P, H, W], for each image and color that has any, and which those are:
    image * number of colors + color, ascending. A large image is mostly empty, and so costs little."""
    saturation = images.max(axis=1) - images.min(axis=1)
    vivid = saturation > COVERAGE * SATURATION.min()
    # HUES sum to zero over channels, so the pixels' gray part drops out of the product.
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
    """The class whose outline covers a blob [h, w] best, and a score in [0, 1]."""
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
    """Finds the miniature's shapes and their colors; the rules have no options and run on the CPU."""

    labels: tuple[str, ...] = CLASSES
    colors: tuple[str, ...] = COLORS
    thresholds = Thresholds(score=0.3, counting=0.3, per_class=16)

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Detections of each image [B, 3, H, W], float in [0, 1], any device, the surest first."""
        return find_shapes(images.detach().float().cpu().numpy())

    def examples(self) -> Sequence[Example]:
        """One drawn scene of each task as its prompt asks for (good), and one with a fault (bad); [3, 64, 64]."""
        import torch

        from dgpo_core.types import Example, Prompt

        rng = Random("examples")
        found = []
        for task in TASKS:
            caption = rng.choice(all_captions(task))
            words = text(caption, TRAIN_TEMPLATES[0])
            prompt = Prompt(words, metadata(caption, words))
            for shown, good in ((caption, True), (corrupt(caption, rng), False)):
                kind, color = (np.array([part]) for part in scene_content(shown, rng))
                image = render(random_scenes(kind, color, np.random.default_rng(len(found))))[0]
                name = f"{words}: {'as asked' if good else text(shown, TRAIN_TEMPLATES[0])}"
                found.append(Example(name, prompt, torch.from_numpy(image), good=good))
        return found

"""Detects the moving shape of a clip by rules: connected blobs of saturated pixels in each frame.

Legend: B clips, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.moving.world import RGB, STEPS, signed_distance

__all__ = ["Seen", "find_motion"]

COVERAGE = 0.6
"""Minimum saturation (largest minus smallest channel) of a shape's pixel, as a fraction of its color's."""
MIN_AREA = 16
"""Minimum area of a blob in pixels; the smallest rendered shape has about 35."""
GRID = 16
"""Size of the grid, stretched over the blob's box, on which blobs and outlines are compared."""
MIN_TRAVEL = 4.0
"""Minimum distance from the first to the last frame, in pixels, of a moving shape; the slowest moves by 8.8."""
STRAIGHT = 2.0
"""Minimum ratio of the distance along the direction to the distance across it."""
PRESENT = 0.75
"""Minimum fraction of frames with exactly one blob."""
HUES = (RGB - RGB.mean(axis=1, keepdims=True)) / np.linalg.norm(RGB - RGB.mean(axis=1, keepdims=True), axis=1)[:, None]
SATURATION = RGB.max(axis=1) - RGB.min(axis=1)


def _outlines() -> NDArray[np.float32]:
    """Return masks [3, GRID²] of SHAPES, stretched to their boxes: 1 inside, -1 outside, so all norms are equal."""
    spot = ((np.arange(GRID) + 0.5) / GRID * 2 - 1).astype(np.float32)
    boxes = {"circle": (1.0, -1.0, 1.0), "square": (0.9, -0.9, 0.9), "triangle": (1.0, -1.0, 0.85)}
    found = []
    for kind, name in enumerate(SHAPES):
        half_width, top, bottom = boxes[name]
        x, y = spot * np.float32(half_width), spot * np.float32((bottom - top) / 2) + np.float32((top + bottom) / 2)
        inside = signed_distance(kind, x[None, :], y[:, None], np.ones((1, 1), dtype=np.float32)) < 0
        found.append(np.where(inside.ravel(), 1.0, -1.0))
    return np.stack(found).astype(np.float32)


OUTLINES = _outlines()


@dataclass(frozen=True, slots=True)
class Seen:
    """Content detected in a clip. Fields that could not be determined are None; `reason` explains why.

    boxes: box (x0, y0, x1, y1) in pixels of the only blob of each frame, None for no blob or several; travel: motion
    (x, y) from the first to the last frame, in pixels, from a linear fit through the centers of the blobs.
    """

    shape: str | None = None
    color: str | None = None
    direction: str | None = None
    reason: str = ""
    boxes: Sequence[tuple[float, float, float, float] | None] = ()
    travel: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Blob:
    center: tuple[float, float]
    fit: NDArray[np.float32]
    color: int
    area: int
    box: tuple[float, float, float, float]


def find_motion(video: NDArray[np.float32]) -> Seen:
    """Detect the only moving shape of a clip [F, 3, H, W], float in [0, 1], or the reason why there is none."""
    frames = [_blobs(frame) for frame in video]
    single = [blobs[0] if len(blobs) == 1 else None for blobs in frames]
    boxes = [blob.box if blob else None for blob in single]
    times = np.array([i for i, blob in enumerate(single) if blob], dtype=np.float64)
    blobs = [blob for blob in single if blob]
    if len(blobs) < max(2.0, PRESENT * len(video)):
        count = sum(not found for found in frames)
        others = len(video) - len(blobs) - count
        return Seen(reason=f"no shape in {count} frames, several in {others} of {len(video)}", boxes=boxes)
    shape = SHAPES[int(np.sum([blob.fit for blob in blobs], axis=0).argmax())]
    votes = np.bincount([blob.color for blob in blobs], minlength=len(COLORS))
    color = COLORS[int(votes.argmax())]
    slope = np.polyfit(times, np.array([blob.center for blob in blobs]), 1)[0]
    way = slope * (len(video) - 1)
    travel = (float(way[0]), float(way[1]))
    along = STEPS @ way
    best = int(along.argmax())
    across = float(np.abs(way[::-1] * STEPS[best]).sum())
    direction: str | None = DIRECTIONS[best]
    reason = ""
    if along[best] < MIN_TRAVEL:
        direction, reason = None, f"it moves by only {along[best]:.1f} pixels"
    elif along[best] < STRAIGHT * across:
        direction, reason = None, "it moves diagonally"
    return Seen(shape, color, direction, reason, boxes, travel)


def _blobs(frame: NDArray[np.float32]) -> list[_Blob]:
    """Return the blobs of a frame [3, H, W], the largest first."""
    hue = np.einsum("tc,chw->thw", HUES, frame).argmax(axis=0)
    saturation = frame.max(axis=0) - frame.min(axis=0)
    mask = saturation > COVERAGE * SATURATION[hue]
    labels, count = ndimage.label(mask)
    found = []
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = place
        blob = labels[place] == label
        area = int(blob.sum())
        if area < MIN_AREA:
            continue
        y, x = np.nonzero(blob)
        center = (float(x.mean()) + columns.start + 0.5, float(y.mean()) + rows.start + 0.5)
        color = int(np.bincount(hue[place][blob], minlength=len(COLORS)).argmax())
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        found.append(_Blob(center, _fit(blob), color, area, box))
    assert count >= len(found)
    return sorted(found, key=lambda blob: -blob.area)


def _fit(blob: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the agreement of a blob [h, w] with the outline of each shape, float32 [3] in [-1, 1]."""
    height, width = blob.shape
    rows = (2 * np.arange(GRID) + 1) * height // (2 * GRID)
    columns = (2 * np.arange(GRID) + 1) * width // (2 * GRID)
    seen = np.where(blob[np.ix_(rows, columns)].ravel(), 1.0, -1.0)
    return np.asarray(OUTLINES @ seen / GRID**2, dtype=np.float32)

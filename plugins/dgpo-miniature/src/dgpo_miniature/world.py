"""The world of shapes: 64x64 images of one to four flat colored shapes on a light background.

A scene has four cells, the quadrants of the image, with at most one shape in each, at a random position and size.
Batches are rendered from signed distances with anti-aliasing.

Legend: N scenes, 4 cells (top left, top right, bottom left, bottom right), C = 3 color channels, H = W = 64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELL", "CLASSES", "COLORS", "EMPTY", "RGB", "SIZE", "Scenes", "random_scenes", "render"]

SIZE = 64
"""Height and width of an image in pixels."""
CELL = 32
"""Height and width of a cell in pixels."""
EMPTY = -1
"""Class index of a cell without a shape."""
CLASSES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow")
RGB: NDArray[np.float32] = np.array(
    [[0.88, 0.12, 0.14], [0.10, 0.66, 0.20], [0.12, 0.26, 0.90], [0.96, 0.80, 0.06]], dtype=np.float32
)
"""Colors of `COLORS`, [4, C] in [0, 1]."""

RADIUS = (8.0, 11.0)
"""Range of half the extent of a shape, in pixels."""
JITTER = 4.0
"""Maximum distance per axis between the center of a shape and that of its cell, in pixels."""
MARGIN = 2.0
"""Minimum distance between a shape and the edge of its cell, in pixels; shapes never touch."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of scenes.

    kind int [N, 4], index into CLASSES or EMPTY; color int [N, 4], index into COLORS; center float32 [N, 4, 2], x and
    y within the cell in pixels; radius float32 [N, 4] in pixels; ground float32 [N, C] in [0, 1].
    """

    kind: NDArray[np.int64]
    color: NDArray[np.int64]
    center: NDArray[np.float32]
    radius: NDArray[np.float32]
    ground: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.kind)


def random_scenes(kind: NDArray[np.int64], color: NDArray[np.int64], rng: np.random.Generator) -> Scenes:
    """Return scenes of the given kind and color [N, 4], with random positions, sizes and backgrounds."""
    n = len(kind)
    radius = rng.uniform(*RADIUS, size=(n, 4)).astype(np.float32)
    reach = np.minimum(JITTER, CELL / 2 - MARGIN - radius)
    offset = rng.uniform(-1.0, 1.0, size=(n, 4, 2)).astype(np.float32) * reach[..., None]
    ground = rng.uniform(0.86, 0.98, size=(n, 1)) + rng.uniform(-0.04, 0.02, size=(n, 3))
    return Scenes(kind, color, (CELL / 2 + offset).astype(np.float32), radius, ground.astype(np.float32))


def signed_distance(
    kind: int, x: NDArray[np.float32], y: NDArray[np.float32], r: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """Return the distance in pixels to the outline of a shape of half extent r at the origin, negative inside."""
    ax, ay = np.abs(x), np.abs(y)
    match CLASSES[kind]:
        case "circle":
            out = np.hypot(x, y) - r
        case "square":
            out = np.maximum(ax, ay) - 0.9 * r
        case "triangle":
            # Apex (0, -r), base from (-r, 0.85 r) to (r, 0.85 r); the flank's outward normal is (1.85, -1) / 2.103.
            out = np.maximum(y - 0.85 * r, (1.85 * ax - (y + r)) / np.float32(np.hypot(1.85, 1.0)))
        case _:
            arm = 0.32 * r
            out = np.minimum(np.maximum(ax - arm, ay - r), np.maximum(ay - arm, ax - r))
    return np.asarray(out, dtype=np.float32)


def render(scenes: Scenes) -> NDArray[np.float32]:
    """Render scenes to images float32 [N, C, H, W] in [0, 1], with edges one pixel wide."""
    n = len(scenes)
    pixel = np.arange(CELL, dtype=np.float32) + 0.5
    cells = np.broadcast_to(scenes.ground[:, None, None, None, :], (n, 4, CELL, CELL, 3)).copy()
    for kind in range(len(CLASSES)):
        row, cell = np.nonzero(scenes.kind == kind)
        center, radius = scenes.center[row, cell], scenes.radius[row, cell][:, None, None]
        x = pixel[None, None, :] - center[:, 0, None, None]
        y = pixel[None, :, None] - center[:, 1, None, None]
        cover = np.clip(0.5 - signed_distance(kind, x, y, radius), 0.0, 1.0)[..., None]
        paint = RGB[scenes.color[row, cell]][:, None, None, :]
        cells[row, cell] += cover * (paint - cells[row, cell])
    grid = cells.reshape(n, 2, 2, CELL, CELL, 3).transpose(0, 5, 1, 3, 2, 4)
    return np.ascontiguousarray(grid.reshape(n, 3, SIZE, SIZE))

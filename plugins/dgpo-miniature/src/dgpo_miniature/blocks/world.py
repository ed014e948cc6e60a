"""The world of blocks: 16x16 images of up to four colored blocks on a light background, at most one in each quadrant.

An arrangement says what is in the cells: 0 for nothing, or 1 + the index of a color. There are few enough (5^4 = 625)
to list them all, so that captions are sets of arrangements.

Legend: N images, 4 cells (top left, top right, bottom left, bottom right), S = 625 arrangements, C = 3 color channels,
H = W = 16 pixels.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from dgpo_miniature.world import COLORS, RGB

__all__ = ["ARRANGEMENTS", "CELL", "COLORS", "SIZE", "random_blocks", "render"]

SIZE = 16
"""Height and width of an image in pixels."""
CELL = 8
"""Height and width of a cell in pixels."""
SIDE = (4.5, 6.0)
"""Range of a block's side, in pixels."""
MARGIN = 0.5
"""Minimum distance between a block and the edge of its cell, in pixels."""
ARRANGEMENTS: NDArray[np.int64] = np.array(list(product(range(1 + len(COLORS)), repeat=4)))
"""Every arrangement, [S, 4]."""


def random_blocks(arrangement: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Render arrangements [N, 4] with random sides, positions and backgrounds; returns images as `render`."""
    n = len(arrangement)
    side = rng.uniform(*SIDE, size=(n, 4))
    corner = MARGIN + rng.uniform(size=(n, 4, 2)) * (CELL - 2 * MARGIN - side[..., None])
    ground = rng.uniform(0.86, 0.98, size=(n, 1)) + rng.uniform(-0.04, 0.02, size=(n, 3))
    return render(arrangement, corner, side, ground)


def render(
    arrangement: NDArray[np.int64],
    corner: NDArray[np.float64],
    side: NDArray[np.float64],
    ground: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Render images float32 [N, C, H, W] in [0, 1], each pixel by the exact share of it that a block covers.

    corner [N, 4, 2], x and y of a block's top left corner in its cell; side [N, 4], both in pixels; ground [N, C].
    """
    pixel = np.arange(CELL)
    low = np.maximum(corner[..., None], pixel)
    high = np.minimum((corner + side[..., None])[..., None], pixel + 1)
    covered = np.clip(high - low, 0.0, 1.0)  # [N, 4, (x, y), CELL]
    cover = covered[:, :, 1, :, None] * covered[:, :, 0, None, :] * (arrangement > 0)[..., None, None]
    paint = RGB[np.maximum(arrangement - 1, 0)] - ground[:, None]
    cells = ground[:, None, :, None, None] + cover[:, :, None] * paint[..., None, None]
    grid = cells.reshape(-1, 2, 2, 3, CELL, CELL).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(grid.reshape(-1, 3, SIZE, SIZE), dtype=np.float32)

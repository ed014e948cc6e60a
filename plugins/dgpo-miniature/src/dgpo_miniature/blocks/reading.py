"""Reads what the cells of an image show, in closed form and vectorized.

Legend: B images, 4 cells, K = 1 + number of colors states of a cell (0: nothing), S arrangements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dgpo_miniature.blocks.world import ARRANGEMENTS, CELL
from dgpo_miniature.world import COLORS, RGB

__all__ = ["agreement", "evidence"]

AREA = 25.0
"""Covered area in pixels at which a block counts as whole; the smallest rendered one has 20."""
HUES = (RGB - RGB.mean(axis=1, keepdims=True)) / np.linalg.norm(RGB - RGB.mean(axis=1, keepdims=True), axis=1)[:, None]
SATURATION = RGB.max(axis=1) - RGB.min(axis=1)


def evidence(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much each cell of images [B, 3, 16, 16] in [0, 1] looks like each state, [B, 4, K] in [0, 1].

    The saturation of a pixel relative to that of the color nearest in hue is the share of the pixel that a block of
    this color covers. With the covered area a_c of a color in units of AREA, at most 1 each and less the part of
    other colors, a cell looks like c by a_c - sum of the others, and like nothing by 1 - sum of all.
    """
    saturation = images.max(axis=1) - images.min(axis=1)
    hue = np.einsum("tc,bchw->bthw", HUES, images).argmax(axis=1)
    share = np.clip(saturation / SATURATION[hue], 0.0, 1.0)
    share = np.where(share > 0.2, share, 0.0)  # the background is not exactly gray
    one_hot = (hue[:, None] == np.arange(len(COLORS))[None, :, None, None]) * share[:, None]
    cells = one_hot.reshape(-1, len(COLORS), 2, CELL, 2, CELL).sum(axis=(3, 5)).reshape(-1, len(COLORS), 4)
    area = np.clip(cells.swapaxes(1, 2) / AREA, 0.0, 1.0)
    total = area.sum(axis=2, keepdims=True)
    nothing = 1.0 - total
    return np.clip(np.concatenate([nothing, 2 * area - total], axis=2), 0.0, 1.0).astype(np.float32)


def agreement(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean evidence over the cells of each arrangement, [B, S], from `evidence` [B, 4, K]."""
    return found.reshape(len(found), -1) @ MEANS


def _means() -> NDArray[np.float32]:
    """Return the matrix [4 K, S] that averages the evidence of an arrangement's cells."""
    states = np.arange(1 + len(COLORS))
    return np.ascontiguousarray((ARRANGEMENTS[:, :, None] == states).reshape(len(ARRANGEMENTS), -1).T, np.float32) / 4


MEANS = _means()

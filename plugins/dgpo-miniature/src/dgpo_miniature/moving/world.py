"""The world of moving shapes: a flat colored shape moves over a light background, in five frames of 32x32 pixels.

Every clip contains one shape of constant size, color and speed, which moves along one axis. Batches are rendered from
signed distances with anti-aliasing, so that motion by half a pixel is visible.

Legend: N clips, F frames, C = 3 color channels, H = W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgpo_miniature.moving.names import SHAPES

__all__ = ["FRAMES", "RGB", "SIZE", "STEPS", "Clips", "random_clips", "render", "signed_distance"]

SIZE = 32
"""Height and width of a frame in pixels."""
FRAMES = 5
"""Number of frames of a clip, of the form 4 k + 1 that Wan's autoencoder requires."""
STEPS: NDArray[np.float32] = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float32)
"""Unit vectors of `DIRECTIONS`, [4, 2]; x points right, y points down."""
RGB: NDArray[np.float32] = np.array(
    [[0.86, 0.14, 0.12], [0.12, 0.64, 0.22], [0.14, 0.28, 0.88], [0.95, 0.78, 0.08]], dtype=np.float32
)
"""Colors of `COLORS`, [4, C] in [0, 1]."""

RADIUS = (4.5, 6.0)
"""Range of half the extent of a shape, in pixels."""
SPEED = (2.2, 3.4)
"""Range of speed in pixels per frame: 9 to 14 pixels per clip, about a third of the image."""
MARGIN = 0.5
"""Minimum distance between a shape and the edge of the image, in pixels."""


@dataclass(frozen=True, slots=True)
class Clips:
    """A batch of clips.

    shape, color, direction int [N], indices into SHAPES, COLORS and DIRECTIONS; center float32 [N, 2], x and y in
    pixels in the middle frame; radius, speed float32 [N], pixels and pixels per frame; ground float32 [N, C] in [0, 1].
    """

    shape: NDArray[np.int64]
    color: NDArray[np.int64]
    direction: NDArray[np.int64]
    center: NDArray[np.float32]
    radius: NDArray[np.float32]
    speed: NDArray[np.float32]
    ground: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.shape)


def random_clips(
    shape: NDArray[np.int64], color: NDArray[np.int64], direction: NDArray[np.int64], rng: np.random.Generator
) -> Clips:
    """Return clips of the given contents [N], with random positions, sizes, speeds and backgrounds."""
    n = len(shape)
    radius = rng.uniform(*RADIUS, size=n)
    speed = rng.uniform(*SPEED, size=n)
    travel = np.abs(STEPS[direction]) * (speed * (FRAMES - 1) / 2)[:, None]
    reach = SIZE / 2 - MARGIN - radius[:, None] - travel
    center = SIZE / 2 + rng.uniform(-1.0, 1.0, size=(n, 2)) * reach
    ground = rng.uniform(0.86, 0.98, size=(n, 1)) + rng.uniform(-0.04, 0.02, size=(n, 3))
    numbers = (part.astype(np.float32) for part in (center, radius, speed, ground))
    return Clips(shape, color, direction, *numbers)


def signed_distance(
    kind: int, x: NDArray[np.float32], y: NDArray[np.float32], r: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the distance in pixels to the outline of a shape of half extent r at the origin, negative inside."""
    match SHAPES[kind]:
        case "circle":
            out = np.hypot(x, y) - r
        case "square":
            out = np.maximum(np.abs(x), np.abs(y)) - 0.9 * r
        case _:
            # Apex (0, -r), base at y = 0.85 r from -r to r; a flank's outward normal is (1.85, -1), not of unit length.
            flank = (1.85 * np.abs(x) - y - r) / np.hypot(1.85, 1.0)
            out = np.maximum(y - 0.85 * r, flank)
    return np.asarray(out, dtype=np.float32)


def render(clips: Clips) -> NDArray[np.float32]:
    """Render clips to videos float32 [N, F, C, H, W] in [0, 1], with edges one pixel wide."""
    time = np.arange(FRAMES, dtype=np.float32) - (FRAMES - 1) / 2
    velocity = STEPS[clips.direction] * clips.speed[:, None]
    center = clips.center[:, None] + velocity[:, None] * time[:, None]  # [N, F, 2]
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5
    x = pixel - center[..., 0, None, None]
    y = pixel[:, None] - center[..., 1, None, None]
    x, y = np.broadcast_arrays(x, y)
    cover = np.empty(x.shape, dtype=np.float32)
    for kind in range(len(SHAPES)):
        rows = clips.shape == kind
        distance = signed_distance(kind, x[rows], y[rows], clips.radius[rows, None, None, None])
        cover[rows] = np.clip(0.5 - distance, 0.0, 1.0)
    ground, paint = clips.ground[:, None, :, None, None], RGB[clips.color][:, None, :, None, None]
    return np.asarray(ground + cover[:, :, None] * (paint - ground), dtype=np.float32)

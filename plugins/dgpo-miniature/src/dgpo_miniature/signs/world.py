"""The world of signs: 32x64 images of three capital letters in dark ink on a light ground, in greys.

Place, size, ink and ground vary; there are no hues, on which a small autoencoder would only spend its latents. The
letters are drawn in Pillow's own font (Aileron, public domain, a part of Pillow), with a stroke that makes it bold.

Legend: N signs, C = 3 color channels, H = 32, W = 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgpo_core.errors import UserError

__all__ = ["HEIGHT", "WIDTH", "Signs", "random_signs", "render"]

HEIGHT, WIDTH = 32, 64
"""Size of an image in pixels."""
SIZES = (21.0, 24.0)
"""Smallest and largest font size; a capital letter is 0.7 times as high, in pixels."""
STROKE = 0.6
"""Width added to every stroke on either side, in pixels."""
JITTER = 2.0
"""Largest distance, per axis, between the word's center and the image's, in pixels."""


@dataclass(frozen=True, slots=True)
class Signs:
    """A batch of signs: what is written and how.

    words: N of them; size float [N], of the font; offset float [N, 2], x and y of the word's center from the
    image's, in pixels; ink and ground float [N], gray levels in [0, 1].
    """

    words: tuple[str, ...]
    size: NDArray[np.float64]
    offset: NDArray[np.float64]
    ink: NDArray[np.float64]
    ground: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.words)


def random_signs(words: Sequence[str], rng: np.random.Generator) -> Signs:
    """Signs that say `words`, with random places, sizes and greys."""
    n = len(words)
    return Signs(
        words=tuple(words),
        # In half steps: each size is one font to load, and the fonts are kept.
        size=np.round(rng.uniform(*SIZES, size=n) * 2) / 2,
        offset=rng.uniform(-JITTER, JITTER, size=(n, 2)),
        ink=rng.uniform(0.0, 0.3, size=n),
        ground=rng.uniform(0.82, 1.0, size=n),
    )


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font in a size. Raises UserError for a Pillow that cannot scale it."""
    try:
        loaded = ImageFont.load_default(size)
    except ImportError as error:
        raise UserError(f"the world of signs draws its letters with a Pillow that has FreeType: {error}") from error
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def coverage(word: str, size: float, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each pixel that the ink covers, [H, W] in [0, 1]."""
    image = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font(size), stroke_width=STROKE)
    # A word that would leave the image is pushed back: a cut letter would be another letter.
    room = np.maximum([(WIDTH - (right - left)) / 2 - 1, (HEIGHT - (bottom - top)) / 2 - 1], 0.0)
    x, y = np.clip(offset, -room, room)
    place = (WIDTH / 2 - (left + right) / 2 + x, HEIGHT / 2 - (top + bottom) / 2 + y)
    draw.text(place, word, font=font(size), fill=255, stroke_width=STROKE)
    return np.asarray(image, dtype=np.float64) / 255


def render(signs: Signs) -> NDArray[np.float32]:
    """Images of signs: float32 [N, C, H, W] in [0, 1], anti-aliased."""
    out = np.empty((len(signs), 3, HEIGHT, WIDTH), dtype=np.float32)
    for row, word in enumerate(signs.words):
        cover = coverage(word, float(signs.size[row]), signs.offset[row])
        out[row] = signs.ground[row] + cover * (signs.ink[row] - signs.ground[row])
    return out

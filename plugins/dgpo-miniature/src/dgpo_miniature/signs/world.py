"""The world of signs: 32x64 grayscale images of three capital letters in dark ink on a light background.

Position, size, ink and background vary. There are no colors, which would use latent capacity of the small autoencoder.
The letters are drawn in Pillow's built-in font (Aileron, public domain), with a stroke that makes it bold.

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
"""Smallest and largest font size; the height of a capital letter in pixels is 0.7 times the font size."""
STROKE = 0.6
"""Width added on each side of every stroke, in pixels."""
JITTER = 2.0
"""Maximum distance per axis between the center of the word and that of the image, in pixels."""


@dataclass(frozen=True, slots=True)
class Signs:
    """A batch of signs.

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
    """Return signs with the given words, at random positions, sizes and gray levels."""
    n = len(words)
    return Signs(
        words=tuple(words),
        # Sizes are rounded to multiples of 0.5 because each size is a font that is loaded and cached.
        size=np.round(rng.uniform(*SIZES, size=n) * 2) / 2,
        offset=rng.uniform(-JITTER, JITTER, size=(n, 2)),
        ink=rng.uniform(0.0, 0.3, size=n),
        ground=rng.uniform(0.82, 1.0, size=n),
    )


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font in a size. Raises UserError if Pillow lacks FreeType."""
    try:
        loaded = ImageFont.load_default(size)
    except ImportError as error:
        raise UserError(f"the world of signs requires Pillow with FreeType support: {error}") from error
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def coverage(word: str, size: float, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of each pixel covered by ink, [H, W] in [0, 1]."""
    image = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font(size), stroke_width=STROKE)
    # Keep the word inside the image, because a cropped letter could look like another one.
    room = np.maximum([(WIDTH - (right - left)) / 2 - 1, (HEIGHT - (bottom - top)) / 2 - 1], 0.0)
    x, y = np.clip(offset, -room, room)
    place = (WIDTH / 2 - (left + right) / 2 + x, HEIGHT / 2 - (top + bottom) / 2 + y)
    draw.text(place, word, font=font(size), fill=255, stroke_width=STROKE)
    return np.asarray(image, dtype=np.float64) / 255


def render(signs: Signs) -> NDArray[np.float32]:
    """Render signs to images float32 [N, C, H, W] in [0, 1], anti-aliased."""
    out = np.empty((len(signs), 3, HEIGHT, WIDTH), dtype=np.float32)
    for row, word in enumerate(signs.words):
        cover = coverage(word, float(signs.size[row]), signs.offset[row])
        out[row] = signs.ground[row] + cover * (signs.ink[row] - signs.ground[row])
    return out

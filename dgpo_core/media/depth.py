"""Decode images with more than 8 bits per channel, which Pillow reduces to 8 bits for color images."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["deep_pixels"]

FULL = 65535
DARK = 2**14
"""If all 16-bit values are below this (a quarter of white), the image more likely has fewer bits than a dark scene."""
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Pillow's names of byte orders, each with the opposite: big endian, little endian, the machine's."""
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""TIFF tags."""


def deep_pixels(
    image: Image.Image, reopen: Callable[[], Image.Image], file: Callable[[], IO[bytes]], notes: list[str]
) -> tuple[NDArray[np.uint16], int] | None:
    """Return the upright pixels [H, W, 3] of an image with 16 bits per channel, and its white value; None for 8 bits.

    image: opened, but not loaded. reopen: opens the image again. file: opens its bytes. notes: receives a note about
    everything that the file leaves uncertain. Transparent pixels are blended on white.

    White is 65535 unless the file declares fewer bits: 4095 in a 12-bit TIFF; 2**bits - 1 in a PNG whose sBIT chunk
    declares fewer bits and whose values are not scaled to 16 bits, as the standard requires. Undeclared values of fewer
    bits cannot be distinguished from a dark image; a note reports it.
    """
    channels = _channels(image, reopen, notes)
    if channels is None:
        return None
    colors, alpha = channels
    white, alpha_white = FULL, FULL
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.format == "TIFF":
        if tags.get(BITS_PER_SAMPLE, (16,))[0] == 12:
            white = 4095
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 8-bit images, but not 16-bit ones
            colors = (white - np.minimum(colors, white)).astype(np.uint16)
    bits = _significant(file) if image.format == "PNG" else ()
    if bits and len(set(bits[: colors.shape[2]])) == 1 and _is_unscaled(colors, bits[0]):
        white = 2 ** bits[0] - 1
        notes.append(
            f"its sBIT chunk declares {bits[0]} bits and its largest value is {int(colors.max())}: white is {white}"
        )
        if alpha is not None and int(alpha.max()) < 2 ** bits[-1]:
            alpha_white = 2 ** bits[-1] - 1
    elif white == FULL and 0 < int(colors.max()) < DARK:
        notes.append(
            f"its largest 16-bit value is {int(colors.max())} of {FULL}, so it is scored as a dark image; if its white "
            "is lower (4095 for 12 bits), which the file does not declare, scale its values to 65535 first"
        )
    colors = _without_transparency(colors, white, alpha, alpha_white, notes)
    return np.broadcast_to(colors, (*colors.shape[:2], 3)), white


def _channels(
    image: Image.Image, reopen: Callable[[], Image.Image], notes: list[str]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None] | None:
    """Return gray or color values [H, W, 1 or 3] and alpha [H, W, 1] or None; None for an 8-bit image."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):
        gray = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)[..., None]
        key = image.info.get("transparency")
        return gray, _keyed(gray, (key,)) if isinstance(key, int) else None
    raw = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    deep = [found for mode in raw if (found := re.fullmatch(r"(\w+);16([BLN])", mode))]
    if not deep:
        return None
    colors, order = deep[0].groups()
    if len(raw) > 1 or (colors, image.mode) not in (("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA")):
        notes.append("only the upper 8 of its 16 bits are read")
        return None
    if colors == "LA":  # four bytes: two of gray, two of alpha
        pieces = _decoded(image, "RGBA")
        pairs = _joined(pieces[..., 0::2], pieces[..., 1::2])
        return pairs[..., :1], pairs[..., 1:]
    key = image.info.get("transparency")
    # Pillow keeps the upper byte; with the opposite byte order it keeps the lower one.
    lower = _decoded(reopen(), f"{colors};16{OTHER_ORDER[order]}")
    pixels = _joined(_decoded(image, f"{colors};16{order}"), lower)
    if colors == "RGBA":
        return pixels[..., :3], pixels[..., 3:]
    return pixels, _keyed(pixels, key) if isinstance(key, tuple) else None


def _raw_mode(tile: tuple[object, ...]) -> str:
    """Return Pillow's raw mode of a tile."""
    mode = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
    return mode if isinstance(mode, str) else ""


def _decoded(image: Image.Image, raw_mode: str) -> NDArray[np.uint8]:
    """Decode an image with another raw mode to pixels [H, W, C]."""
    opened: Any = image  # images opened by Pillow have tiles
    opened.tile = [_with_raw_mode(tile, raw_mode) for tile in opened.tile]
    return np.asarray(ImageOps.exif_transpose(image))


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)  # before Pillow 11.1


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return upper.astype(np.uint16) << np.uint16(8) | lower.astype(np.uint16)


def _keyed(pixels: NDArray[np.uint16], key: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return alpha that is 0 where a pixel equals the transparent color `key`."""
    return np.where((pixels == np.array(key)).all(2, keepdims=True), 0, FULL).astype(np.uint16)


def _without_transparency(
    colors: NDArray[np.uint16], white: int, alpha: NDArray[np.uint16] | None, opaque: int, notes: list[str]
) -> NDArray[np.uint16]:
    if alpha is None or int(alpha.min()) >= opaque:
        return colors
    notes.append("its transparent pixels are shown on white")
    share = np.minimum(alpha, opaque).astype(np.uint32)  # 65535 ** 2 fits 32 bits
    return ((colors * share + white * (opaque - share) + opaque // 2) // opaque).astype(np.uint16)


def _is_unscaled(values: NDArray[np.uint16], bits: int) -> bool:
    """Return whether values of `bits` bits are stored unscaled in 16 bits.

    The PNG standard requires them shifted up, with the low bits zero or repeating their upper bits.
    """
    if not 8 <= bits < 16 or int(values.max()) >= 2**bits:
        return False
    rest = 16 - bits
    upper, low = values >> rest, values & (2**rest - 1)
    return bool(((low != 0) & (low != upper >> max(0, bits - rest))).any())


def _significant(opened: Callable[[], IO[bytes]]) -> tuple[int, ...]:
    """Return the significant bits of each channel from a PNG's sBIT chunk (PNG 11.3.2.7); empty without it."""
    with opened() as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"PLTE", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                return tuple(file.read(min(length, 4)))
            file.seek(length + 4, 1)
    return ()

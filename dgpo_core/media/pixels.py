"""Decode image and video files to arrays, without torch, so that processes that only read files start fast."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dgpo_core.media import video
from dgpo_core.media.depth import deep_pixels

__all__ = [
    "FORMATS", "MAX_PIXELS", "Pixels", "Source", "Unreadable", "measure", "moves", "read_pixels", "readable_formats",
]  # fmt: skip

Source = Path | bytes
"""A file or its bytes."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
"""Formats that Pillow may read. Its other formats start programs (EPS), have no magic bytes (TGA), contain several
sizes of one image (ICO) or are rare, which is not worth the risk."""
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats whose further images are frames. Further images in a phone's JPEG are not."""
MAX_PIXELS = 2**27
"""Maximum number of pixels of one file, over all frames: 1.6 GB as float32. A small file can decode to any size. Pillow
warns below this limit and refuses above it, unless `Image.MAX_IMAGE_PIXELS` is lower."""
DECODING = threading.RLock()


class Unreadable(ValueError):
    """A file that cannot be decoded as an image or a video; the message omits its name.

    too_large: whether its size is the only problem.
    """

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded RGB pixels, uint8 or uint16: [H, W, 3] for an image or [F, H, W, 3] for a video.

    white: the value that maps to 1.0; larger values are clipped. notes: what decoding has converted or dropped.
    """

    values: NDArray[np.uint8] | NDArray[np.uint16]
    white: int = 255
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `floats()`: [3, H, W] or [F, 3, H, W]."""
        *frames, height, width, channels = self.values.shape
        return (*frames, channels, height, width)

    def floats(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return float32 in [0, 1], [3, H, W] or [F, 3, H, W], written to `out` if given."""
        scaled = np.empty(self.shape, dtype=np.float32) if out is None else out
        for channel in range(3):  # avoids a second copy, which may take 1.6 GB
            np.divide(self.values[..., channel], self.white, out=scaled[..., channel, :, :], dtype=np.float32)
        return np.minimum(scaled, 1, out=scaled)


def readable_formats() -> list[str]:
    """Return the FORMATS that this build of Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress Pillow's warnings about minor file flaws and about sizes below MAX_PIXELS.

    Warning filters are global to the process, so only one thread at a time may enter.
    """
    with DECODING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _explained() -> Iterator[None]:
    """Convert the exceptions of decoders to Unreadable."""
    try:
        yield
    except (Unreadable, video.NotInstalled, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        source = " (PIL.Image.MAX_IMAGE_PIXELS)" if most < MAX_PIXELS else ""
        raise Unreadable(
            f"it would decode to more than {min(most, MAX_PIXELS):,} pixels{source}", too_large=True
        ) from error
    except UnidentifiedImageError as error:
        raise Unreadable("not a readable image or video") from error
    except ValueError as error:
        raise Unreadable(str(error)) from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's decoders may raise anything for damaged data
        raise Unreadable(f"not a readable image: {type(error).__name__}: {error}") from error


@_explained()
def read_pixels(source: Source, most: int | None = None) -> Pixels:
    """Decode an image or a video; see `media.files.read_media` for the formats and conversions.

    most: maximum number of pixels over all frames, MAX_PIXELS by default. Raises Unreadable, and video.NotInstalled for
    a video if PyAV is not installed.
    """
    most = MAX_PIXELS if most is None else min(most, MAX_PIXELS)
    with _bytes(source) as handle:
        kind = _container(handle)
        if kind is not None:
            return Pixels(video.read_frames(handle, kind, most))
    return _pillow(source, most)


@_explained()
def measure(source: Source, most_frames: int) -> tuple[int, int, int]:
    """Return the number of frames, height and width of a file from its headers, without decoding it.

    An image has one frame. Counts at most `most_frames` + 1 frames of a video. Raises like `read_pixels`.
    """
    with _bytes(source) as handle:
        kind = _container(handle)
        if kind is not None:
            return video.measure(handle, kind, most_frames)
    with quietly(), _open(source) as image:
        return _frames(image), image.height, image.width


def moves(source: Source) -> bool:
    """Return whether a file is a video, reading as little as possible. Passes on exceptions of the decoders."""
    with _bytes(source) as handle:
        if _container(handle) is not None:
            return True
    with quietly(), _open(source) as image:
        return _frames(image) > 1


def _bytes(source: Source) -> IO[bytes]:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _container(handle: IO[bytes]) -> str | None:
    """Return the container format of a video; None for a possible image. Raises Unreadable for an empty file."""
    head = handle.read(video.HEAD)
    if not head:
        raise Unreadable("the file is empty")
    return video.container(head)


def _open(source: Source) -> Image.Image:
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=readable_formats())


def _frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1


def _pillow(source: Source, most: int) -> Pixels:
    notes: list[str] = []
    with quietly(), _open(source) as image:
        pages, frames = getattr(image, "n_frames", 1), _frames(image)
        if frames * image.width * image.height > most:
            what = "its frames have" if frames > 1 else "it would decode to"
            raise Unreadable(f"{what} more than {most:,} pixels; shorten it or reduce its size", too_large=True)
        if pages > 1 and image.format == "TIFF":
            notes.append(f"it contains {pages} images; only the first is scored")
        if frames > 1:
            pixels, white = np.stack([_rgb(_frame(image, i), notes) for i in range(frames)]), 255
            return Pixels(pixels, white, tuple(dict.fromkeys(notes)))
        with ExitStack() as opened:
            deep = deep_pixels(image, lambda: opened.enter_context(_open(source)), lambda: _bytes(source), notes)
        if deep is not None:
            return Pixels(*deep, tuple(dict.fromkeys(notes)))
        return Pixels(_rgb(ImageOps.exif_transpose(image), notes), 255, tuple(dict.fromkeys(notes)))


def _frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return image


def _rgb(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """Convert an 8-bit image of any mode to pixels [H, W, 3]; appends conversions to `notes`."""
    if image.mode.startswith("I;16"):  # a frame; still images were handled by `deep_pixels`
        notes.append("only the upper 8 of its 16 bits are read")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels are 32-bit, signed or floating-point values without a defined white; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("its transparent pixels are shown on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))

"""Image and video files as arrays, without torch: what only reads files starts at once and stays small."""

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
"""A file, or what it holds."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
"""What Pillow may read. Its other formats start programs (EPS), have no first bytes to tell them by (TGA), hold several
sizes of one image (ICO) or hardly occur: they are not worth their risks."""
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats whose further images are frames. A phone's JPEG may carry others, which are not."""
MAX_PIXELS = 2**27
"""Most pixels of one file, all frames together: 1.6 GB as float32. A small file may unpack to any size. Pillow warns of
fewer, and refuses more unless somebody has lowered `Image.MAX_IMAGE_PIXELS`."""
DECODING = threading.RLock()


class Unreadable(ValueError):
    """A file that cannot be read as an image or a video; says why, without its name. too_large: only its size is at
    fault."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


@dataclass(frozen=True, slots=True)
class Pixels:
    """What a file holds: uint8 or uint16, RGB, [H, W, 3] of an image or [F, H, W, 3] of a video.

    white: the value that is 1.0, as is everything above it; notes: what reading has changed or left out, in words.
    """

    values: NDArray[np.uint8] | NDArray[np.uint16]
    white: int = 255
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the floats: [3, H, W] or [F, 3, H, W]."""
        *frames, height, width, channels = self.values.shape
        return (*frames, channels, height, width)

    def floats(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """float32 in [0, 1], [3, H, W] or [F, 3, H, W]; into `out` where it is given."""
        scaled = np.empty(self.shape, dtype=np.float32) if out is None else out
        for channel in range(3):  # one copy, and no more: it may be 1.6 GB
            np.divide(self.values[..., channel], self.white, out=scaled[..., channel, :, :], dtype=np.float32)
        return np.minimum(scaled, 1, out=scaled)


def readable_formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with, by its names."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def quietly() -> Iterator[None]:
    """Pillow without its warnings: of a file's small flaws, which are not the user's, and of sizes below MAX_PIXELS.

    Python switches warnings for the whole process, so only one thread at a time is in here.
    """
    with DECODING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever a reader raises, in words."""
    try:
        yield
    except (Unreadable, video.NotInstalled, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        whose = " (PIL.Image.MAX_IMAGE_PIXELS)" if most < MAX_PIXELS else ""
        raise Unreadable(
            f"it would unpack to more than {min(most, MAX_PIXELS):,} pixels{whose}", too_large=True
        ) from error
    except UnidentifiedImageError as error:
        raise Unreadable("not an image or a video that can be read") from error
    except ValueError as error:
        raise Unreadable(str(error)) from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers meet broken data with whatever comes
        raise Unreadable(f"not an image that can be read: {type(error).__name__}: {error}") from error


@_explained()
def read_pixels(source: Source, most: int | None = None) -> Pixels:
    """Read an image or a video: `media.read_media` says what is read, and how.

    most: pixels of all frames together, MAX_PIXELS by default. Raises Unreadable, and video.NotInstalled for a video
    if PyAV is not there.
    """
    most = MAX_PIXELS if most is None else min(most, MAX_PIXELS)
    with _bytes(source) as handle:
        kind = _container(handle)
        if kind is not None:
            return Pixels(video.read_frames(handle, kind, most))
    return _pillow(source, most)


@_explained()
def measure(source: Source, most_frames: int) -> tuple[int, int, int]:
    """Frames, height and width of a file, by its headers; nothing is unpacked. An image has one frame. Frames of a
    video are counted up to one more than `most_frames`. Raises what `read_pixels` raises."""
    with _bytes(source) as handle:
        kind = _container(handle)
        if kind is not None:
            return video.measure(handle, kind, most_frames)
    with quietly(), _open(source) as image:
        return _frames(image), image.height, image.width


def moves(source: Source) -> bool:
    """Whether a file is a video, by as little of it as tells. Raises whatever comes."""
    with _bytes(source) as handle:
        if _container(handle) is not None:
            return True
    with quietly(), _open(source) as image:
        return _frames(image) > 1


def _bytes(source: Source) -> IO[bytes]:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _container(handle: IO[bytes]) -> str | None:
    """What container a video is in; None for what may be an image. Raises Unreadable for nothing at all."""
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
            what = "its frames hold" if frames > 1 else "it would unpack to"
            raise Unreadable(f"{what} more than {most:,} pixels; cut it, or make it smaller", too_large=True)
        if pages > 1 and image.format == "TIFF":
            notes.append(f"it holds {pages} images, of which the first is scored")
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
    """Pixels [H, W, 3] of an image of 8 bits and any mode; appends to `notes` what was changed."""
    if image.mode.startswith("I;16"):  # a frame: images have gone through `deep_pixels`
        notes.append("of its 16 bits the upper 8 are read")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels have 32 bits, signs or fractions, of which nobody says what is white; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("what is transparent in it is shown on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))

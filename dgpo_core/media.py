"""Picture and video files as the media that rewards take."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dgpo_core import video
from dgpo_core.depth import deep_pixels
from dgpo_core.errors import UserError
from dgpo_core.kinds import Kind
from dgpo_core.listing import readable_formats

__all__ = ["MAX_PIXELS", "MediaError", "Medium", "check_files", "kind_of", "quietly", "read_media"]

ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats whose further pictures are frames. A phone's JPEG may carry others, which are not."""
MAX_PIXELS = 2**27
"""Most pixels of one file, all frames together: 1.6 GB as float32. A small file may unpack to any size. Pillow warns of
fewer, and refuses more unless somebody has lowered `Image.MAX_IMAGE_PIXELS`."""
DECODING = threading.RLock()


class MediaError(UserError):
    """A file that cannot be read as a picture or a video; `reason` is the message without the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True, slots=True)
class Medium:
    """What a file holds: float32 in [0, 1], RGB, [3, H, W] of a picture or [F, 3, H, W] of a video.

    notes: what reading has changed or left out, in words.
    """

    tensor: Tensor
    notes: tuple[str, ...] = ()


@contextmanager
def quietly() -> Iterator[None]:
    """Pillow without its warnings: of a file's small flaws, which are not the user's, and of sizes below MAX_PIXELS.

    Python switches warnings for the whole process, so only one thread at a time is in here.
    """
    with DECODING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def kind_of(path: Path) -> Kind | None:
    """What a file holds, from as little of it as tells; None if it cannot be read, which `read_media` explains."""
    try:
        with path.open("rb") as handle:
            if video.container(handle.read(video.HEAD)) is not None:
                return "video"
        with quietly(), _open(path) as image:
            moves = image.format in ANIMATED and getattr(image, "n_frames", 1) > 1
        return "video" if moves else "image"
    except Exception:  # whatever comes, as in `read_media`
        return None


def check_files(files: Sequence[Path]) -> None:
    """Raise UserError if one of them is a video and what reads videos is not installed. Reads first bytes only."""
    for path in files:
        try:
            with path.open("rb") as handle:
                kind = video.container(handle.read(video.HEAD))
        except OSError:
            continue  # `read_media` says it
        if kind is not None:
            video.require(path)


def read_media(path: Path) -> Medium:
    """Read a picture (PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, QOI) or a video (those of them that move,
    mp4, mov, webm, mkv, avi).

    A picture is turned as its EXIF orientation says; what is transparent is shown on white, with a note. Pictures of 16
    bits a channel keep them if they are PNG, grey or RGB(A) TIFF, or grey PGM; of others, and of those that move, the
    upper 8 are read. See `depth.deep_pixels` for fewer bits in 16. Raises MediaError for a file that is empty, no
    picture or video, cut off, or larger than MAX_PIXELS once unpacked, and for pixels of which nobody says what is
    white: floats, and integers that are signed or have 32 bits.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(video.HEAD)
        if not head:
            raise ValueError("the file is empty")
        kind = video.container(head)
        if kind is not None:
            return Medium(_tensor(video.read_frames(path, kind, MAX_PIXELS)))
        return _pillow(path)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        whose = " (PIL.Image.MAX_IMAGE_PIXELS)" if most < MAX_PIXELS else ""
        raise MediaError(path, f"it would unpack to more than {min(most, MAX_PIXELS):,} pixels{whose}") from error
    except UnidentifiedImageError as error:
        raise MediaError(path, "not a picture or a video that can be read") from error
    except ValueError as error:
        raise MediaError(path, str(error)) from error
    except OSError as error:
        raise MediaError(path, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers meet broken data with whatever comes
        raise MediaError(path, f"not a picture that can be read: {type(error).__name__}: {error}") from error


def _pillow(path: Path) -> Medium:
    notes: list[str] = []
    with quietly(), _open(path) as image:
        pages = getattr(image, "n_frames", 1)
        frames = pages if image.format in ANIMATED else 1
        if frames * image.width * image.height > MAX_PIXELS:
            what = "its frames hold" if frames > 1 else "it would unpack to"
            raise ValueError(f"{what} more than {MAX_PIXELS:,} pixels; cut it, or make it smaller")
        if pages > 1 and image.format == "TIFF":
            notes.append(f"it holds {pages} pictures, of which the first is scored")
        if frames > 1:
            tensor = _tensor(np.stack([_rgb(_frame(image, i), notes) for i in range(frames)]), 255)
        else:
            with ExitStack() as opened:
                deep = deep_pixels(image, lambda: opened.enter_context(_open(path)), path, notes)
            tensor = _tensor(*deep) if deep else _tensor(_rgb(ImageOps.exif_transpose(image), notes), 255)
    return Medium(tensor, tuple(dict.fromkeys(notes)))


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=readable_formats())


def _frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return image


def _rgb(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of a picture of 8 bits and any mode; appends to `notes` what was changed."""
    if image.mode.startswith("I;16"):  # a frame: pictures have gone through `deep_pixels`
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


def _tensor(pixels: NDArray[np.uint8] | NDArray[np.uint16], white: int = 255) -> Tensor:
    """Pixels [..., H, W, 3] as float32 [..., 3, H, W] in [0, 1]; `white` and what is above it becomes 1."""
    height, width, _ = pixels.shape[-3:]
    scaled = np.empty((*pixels.shape[:-3], 3, height, width), dtype=np.float32)
    for channel in range(3):  # one copy, and no more: it may be 1.6 GB
        np.divide(pixels[..., channel], white, out=scaled[..., channel, :, :], dtype=np.float32)
    return torch.from_numpy(scaled).clamp_(max=1)

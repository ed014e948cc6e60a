"""Read image and video files as tensors for rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.media import video
from dgpo_core.media.kinds import Kind
from dgpo_core.media.pixels import Unreadable, moves, read_pixels

__all__ = ["MediaError", "Medium", "check_files", "kind_of", "read_media"]


class MediaError(UserError):
    """A file cannot be read as an image or a video; `reason` is the message without the file name."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True, slots=True)
class Medium:
    """The contents of a file: float32 RGB in [0, 1], [3, H, W] for an image or [F, 3, H, W] for a video.

    notes: sentences about what reading has converted or dropped.
    """

    tensor: Tensor
    notes: tuple[str, ...] = ()


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file from its first bytes; None if it cannot be read (`read_media` reports why)."""
    try:
        return "video" if moves(path) else "image"
    except Exception:  # decoders may raise anything; `read_media` reports it
        return None


def check_files(files: Sequence[Path]) -> None:
    """Raise UserError if a file is a video and the video reader is not installed. Reads only the first bytes."""
    for path in files:
        try:
            with path.open("rb") as handle:
                kind = video.container(handle.read(video.HEAD))
        except OSError:
            continue  # `read_media` reports it
        if kind is not None and not video.is_installed():
            raise UserError(f"{path}: {video.NotInstalled()}")


def read_media(path: Path) -> Medium:
    """Read an image (PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, QOI) or a video (animated images, mp4, mov,
    webm, mkv, avi).

    Applies the EXIF orientation and blends transparent pixels on white, with a note. 16 bits per channel are kept for
    PNG, gray or RGB(A) TIFF, and gray PGM; for other formats and animated images only the upper 8 are read. See
    `depth.deep_pixels` for fewer bits stored in 16. Raises MediaError for a file that is empty, not an image or a
    video, truncated, or larger than pixels.MAX_PIXELS when decoded, and for pixels without a defined white value:
    floats, and integers that are signed or have 32 bits. Raises UserError for a video if PyAV is not installed.
    """
    try:
        pixels = read_pixels(path)
    except video.NotInstalled as error:
        raise UserError(f"{path}: {error}") from None
    except Unreadable as error:
        raise MediaError(path, str(error)) from error
    except MemoryError as error:
        raise MediaError(path, f"the image cannot be read: MemoryError: {error}") from error
    return Medium(torch.from_numpy(pixels.floats()), pixels.notes)

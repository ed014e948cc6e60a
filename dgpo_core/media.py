"""Picture and video files as the media that rewards take."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dgpo_core import video
from dgpo_core.errors import UserError
from dgpo_core.kinds import Kind

__all__ = ["MAX_PIXELS", "MediaError", "Medium", "check_files", "expand", "kind_of", "read_media"]

PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Endings by which a directory's pictures and videos are told from its other files; those read are told by content."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What Pillow may read; its rarer formats are not worth their risks."""
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats whose further pictures are frames. A phone's JPEG may carry others, which are not."""
MAX_PIXELS = 2**27
"""Most pixels of one file, all frames together: 1.6 GB as float32. A small file may unpack to any size."""
OURS = ("grid.png", "*.annotated.png")
"""What `dgpo sample` and `dgpo score` put beside pictures; a film strip 07.png lies beside its video, 07.mp4."""


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


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files, with the pictures and videos of a directory (not of those in it), sorted by name, in its place.

    Raises UserError naming every path that leads nowhere.
    """
    files: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES + VIDEOS and p.is_file())
                found = [p for p in found if not _is_ours(p)]
                files += found
                problems += [] if found else [f"{path}: the directory holds no pictures or videos"]
            elif path.is_file():
                files.append(path)
            else:
                problems.append(f"{path}: " + ("is not a regular file" if path.exists() else "there is no such file"))
        except (OSError, ValueError) as error:  # no permission; a name with a zero byte
            problems.append(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if problems:
        raise UserError("\n".join(problems))
    return files


def _is_ours(path: Path) -> bool:
    strip = path.suffix == ".png" and path.stem.isdecimal() and path.with_suffix(".mp4").is_file()
    return strip or any(path.match(pattern) for pattern in OURS)


def kind_of(path: Path) -> Kind | None:
    """What a file holds, from as little of it as tells; None if it cannot be read, which `read_media` explains."""
    try:
        with path.open("rb") as handle:
            if video.container(handle.read(video.HEAD)) is not None:
                return "video"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_allowed()) as image:
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
    """Read a picture (PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF) or a video (those of them that move, mp4, mov, webm,
    mkv, avi) of any depth and colour.

    A picture is turned as its EXIF orientation says; what is transparent is shown on white, with a note. Raises
    MediaError for a file that is empty, no picture or video, cut off, or larger than MAX_PIXELS once unpacked.
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
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(path, f"it would unpack to more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise MediaError(path, "not a picture or a video that can be read") from error
    except ValueError as error:
        raise MediaError(path, str(error)) from error
    except OSError as error:
        raise MediaError(path, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers meet broken data with whatever comes
        raise MediaError(path, f"not a picture that can be read: {type(error).__name__}: {error}") from error


def _pillow(path: Path) -> Medium:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's small flaws, which are not the user's
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_allowed()) as image:
            frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            if frames * image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its frames hold more than {MAX_PIXELS:,} pixels; cut it, or make it smaller")
            notes: list[str] = []
            if frames > 1:
                tensor = _tensor(np.stack([_rgb(_frame(image, i), image.format, notes) for i in range(frames)]))
            else:
                tensor = _tensor(_rgb(ImageOps.exif_transpose(image), image.format, notes))
    return Medium(tensor, tuple(dict.fromkeys(notes)))


def _allowed() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return image


def _rgb(image: Image.Image, kind: str | None, notes: list[str]) -> NDArray[np.uint8 | np.uint16]:
    """Pixels [H, W, 3] of a picture of any mode, uint8 or uint16; appends to `notes` what was changed."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind != "TIFF"):
        return np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of which nobody says what is white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("what is transparent in it is shown on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _tensor(pixels: NDArray[np.uint8 | np.uint16]) -> Tensor:
    """Pixels [..., H, W, 3] as float32 [..., 3, H, W] in [0, 1]."""
    scaled = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, -3)))

"""List the images and videos of a directory in natural order."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from dgpo_core.errors import UserError
from dgpo_core.media.pixels import readable_formats

__all__ = ["expand", "image_endings", "natural_order"]

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Video file extensions in directory listings; when a file is read, its content decides."""
STRANGE = (
    ".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr",
    ".wmv", ".flv", ".mpg", ".mpeg", ".m2ts", ".ogv", ".3gp",
)  # fmt: skip
"""Extensions of images and videos that Pillow does not know either."""
OURS = ("grid.png", "*.annotated.*", "annotated.html", "prompts.json", "conditions.json", "media-????????????.png")
"""Files that `dgpo sample` and `dgpo score` write next to images; a film strip 07.png belongs to its video 07.mp4."""
MOST_SEARCHED = 100
"""Maximum number of directories to search for images if the given one has none."""
NAMED = 3
"""Number of files of each kind that a note names before it counts the rest."""
HIDDEN, DIRECTORY, UNREAD, OTHER, NOWHERE, SPECIAL = (
    "hidden",
    "directories",
    "unsupported formats",
    "not images or videos by their extension",
    "broken links",
    "not regular files",
)


@cache
def image_endings() -> frozenset[str]:
    """Return the extensions of readable images from Pillow's registry, in lower case with their dots."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in readable_formats()) | {".mpo"}


def natural_order(name: str) -> tuple[Any, ...]:
    """Return a sort key for file names in natural order.

    Numbers compare by value (2.png before 10.png), in the digits of any script; case and the composition of Unicode
    accents are ignored. Names that are equal by these rules (1.png and 01.png) compare by their characters, so that the
    order is deterministic.
    """
    stem, dot, ending = name.rpartition(".")
    return (*(_split(part) for part in ((stem, ending) if dot and stem else (name, ""))), name)


def _split(text: str) -> tuple[str | int, ...]:
    """Split into texts at even indices and numbers at odd indices."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFD", text))
    return tuple(int(part) if i % 2 else part.casefold() for i, part in enumerate(parts))


def expand(paths: Sequence[Path], note: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Return the given files in order, replacing each directory by its images and videos in natural order.

    Directories are not searched recursively. `note` receives a message about the skipped files of a directory (hidden
    files, subdirectories, other formats), except files that this program writes. Raises UserError listing every path
    that does not exist.
    """
    files: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            if path.is_dir():
                found, left_out = _of_directory(path)
                files += found
                if not found:
                    problems.append(
                        f"{path}: the directory contains no images or videos"
                        + (left_out and f" ({left_out})")
                        + _where_instead(path)
                    )
                elif left_out:
                    note(f"{path}: {left_out}")
            elif path.is_file():
                files.append(path)
            else:
                problems.append(f"{path}: " + ("is not a regular file" if path.exists() else "no such file"))
        except (OSError, ValueError) as error:  # missing permission, or a null byte in the name
            problems.append(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if problems:
        raise UserError("\n".join(problems))
    return files


def _of_directory(directory: Path) -> tuple[list[Path], str]:
    """Return the images and videos of a directory, and a message about the skipped files."""
    found: list[Path] = []
    others: dict[str, list[str]] = {}
    for path in sorted(directory.iterdir(), key=lambda path: natural_order(path.name)):
        if _is_ours(path):
            continue
        kind = _why_not(path)
        if kind is None:
            found.append(path)
        else:
            others.setdefault(kind, []).append(path.name)
    parts = [f"{_some(names)} ({kind})" for kind, names in others.items()]
    return found, f"skipped {', '.join(parts)}" if parts else ""


def _where_instead(directory: Path) -> str:
    """Suggest the first subdirectory that contains images or videos; "" if a short search finds none."""
    walk = os.walk(directory)
    for parent, inner, names in itertools.islice(walk, MOST_SEARCHED):
        inner[:] = sorted((name for name in inner if not name.startswith(".")), key=natural_order)
        if any(_why_not(Path(parent, name)) is None for name in names):
            return f"; give the directories that contain them, such as {parent}"
    return ""


def _why_not(path: Path) -> str | None:
    """Return why a file of a directory is skipped; None if it is an image or a video."""
    ending = path.suffix.lower()
    if path.name.startswith("."):  # includes ._1.png, the AppleDouble file with the macOS metadata of 1.png
        return HIDDEN
    if path.is_dir():
        return DIRECTORY
    if ending not in image_endings() and ending not in VIDEOS:
        return UNREAD if ending in STRANGE or ending in Image.registered_extensions() else OTHER
    if path.is_file():
        return None
    return SPECIAL if path.exists() else NOWHERE


def _is_ours(path: Path) -> bool:
    strip = path.suffix == ".png" and path.stem.isdecimal() and path.with_suffix(".mp4").is_file()
    return strip or any(path.match(pattern) for pattern in OURS)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more

"""Which files of a directory are images and videos, and in which order: that in which people count."""

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
"""Endings by which a directory's images and videos are told from its other files; those read are told by content."""
STRANGE = (
    ".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr",
    ".wmv", ".flv", ".mpg", ".mpeg", ".m2ts", ".ogv", ".3gp",
)  # fmt: skip
"""Endings of images and videos that Pillow does not know either."""
OURS = ("grid.png", "*.annotated.*", "annotated.html", "prompts.json", "conditions.json", "media-????????????.png")
"""What `dgpo sample` and `dgpo score` put beside images; a film strip 07.png lies beside its video, 07.mp4."""
MOST_SEARCHED = 100
"""Directories that are looked into for images where there are none."""
NAMED = 3
"""Files that a note names of each kind before it counts the others."""
HIDDEN, DIRECTORY, UNREAD, OTHER, NOWHERE, SPECIAL = (
    "hidden",
    "directories",
    "of formats that are not read",
    "neither images nor videos by their endings",
    "links that lead nowhere",
    "no regular files",
)


@cache
def image_endings() -> frozenset[str]:
    """Endings of the images that can be read, in lower case with their dots; Pillow's registry knows them."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in readable_formats()) | {".mpo"}


def natural_order(name: str) -> tuple[Any, ...]:
    """A sort key of file names: numbers count by their value (2.png before 10.png) in the digits of any script, upper
    and lower case are one, and so are Unicode's composed and decomposed accents.

    What is equal by that (1.png and 01.png) is ordered by its characters, so that the order is always the same.
    """
    stem, dot, ending = name.rpartition(".")
    return (*(_split(part) for part in ((stem, ending) if dot and stem else (name, ""))), name)


def _split(text: str) -> tuple[str | int, ...]:
    """Texts at even places, numbers at odd ones."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFD", text))
    return tuple(int(part) if i % 2 else part.casefold() for i, part in enumerate(parts))


def expand(paths: Sequence[Path], note: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The files as they are given, with the images and videos of a directory (not of those in it) in its place, in
    natural order.

    `note` is told what a directory holds beside them, except what this program itself has put there: hidden files and
    directories, other formats, other files. Raises UserError naming every path that leads nowhere.
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
                        f"{path}: the directory holds no images or videos"
                        + (left_out and f" ({left_out})")
                        + _where_instead(path)
                    )
                elif left_out:
                    note(f"{path}: {left_out}")
            elif path.is_file():
                files.append(path)
            else:
                problems.append(f"{path}: " + ("is not a regular file" if path.exists() else "there is no such file"))
        except (OSError, ValueError) as error:  # no permission; a name with a zero byte
            problems.append(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if problems:
        raise UserError("\n".join(problems))
    return files


def _of_directory(directory: Path) -> tuple[list[Path], str]:
    """Its images and videos, and in words what is left out."""
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
    return found, f"left out {', '.join(parts)}" if parts else ""


def _where_instead(directory: Path) -> str:
    """In words, the first directory in it that does hold some; empty where a short search finds none."""
    walk = os.walk(directory)
    for place, inner, names in itertools.islice(walk, MOST_SEARCHED):
        inner[:] = sorted((name for name in inner if not name.startswith(".")), key=natural_order)
        if any(_why_not(Path(place, name)) is None for name in names):
            return f"; name the directories that do, such as {place}"
    return ""


def _why_not(path: Path) -> str | None:
    """Why a file is not taken from its directory; None if it is. What is no image is looked at no further."""
    ending = path.suffix.lower()
    if path.name.startswith("."):  # AppleDouble's ._1.png too, which is what macOS knows about 1.png
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

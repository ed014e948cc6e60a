"""Condition media: images and videos that samples are conditioned on, identified by the SHA-256 of their bytes.

Imports torch only when a tensor is created, because `dgpo validate` uses this module.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import UserError
from dgpo_core.media.kinds import one_of
from dgpo_core.media.video import NotInstalled
from dgpo_core.system.reading import read_file, why
from dgpo_core.types import ConditionMedium
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.media.pixels import Pixels, Source

__all__ = [
    "MAX_BYTES", "checked_medium", "condition_medium", "content_of", "measured", "name_of", "notes_of", "pixels_of",
    "tensor_of",
]  # fmt: skip

MAX_BYTES = 256 << 20
"""Maximum size of a file, as of a request to a reward service; `pixels.MAX_PIXELS` limits its decoded size."""
NEIGHBORS = 10_000
"""Maximum number of directory entries to search for a similar name."""


@dataclass(frozen=True, slots=True)
class _Known:
    kind: Literal["image", "video"]
    digest: str
    notes: tuple[str, ...]


_KNOWN: dict[tuple[int, ...], _Known] = {}
"""Files that this process has decoded, keyed by device, inode, size and times to detect changes."""


def condition_medium(source: Path | bytes) -> ConditionMedium:
    """Return the medium, an image or a video, in a file or its bytes.

    Decodes the whole file to check it, once per distinct file and process. Raises UserError, naming the file, if it is
    missing, not a regular file, unreadable, larger than MAX_BYTES or (decoded) `pixels.MAX_PIXELS`, not an image or a
    video, or a video while PyAV is not installed.
    """
    if isinstance(source, bytes):
        known = _examined(source, "")
        return ConditionMedium(known.kind, known.digest, content=source, reader=tensor_of)
    known = _examined_file(source)
    return ConditionMedium(known.kind, known.digest, str(source), reader=tensor_of)


def notes_of(medium: ConditionMedium) -> tuple[str, ...]:
    """Return notes about what decoding the file converts or drops."""
    return _examined_file(Path(medium.path)).notes if medium.content is None else ()


def checked_medium(medium: ConditionMedium) -> ConditionMedium:
    """Return the medium with a reader.

    Raises UserError if its bytes are missing, do not match its digest, or do not contain a medium of its kind.
    """
    found = condition_medium(Path(medium.path) if medium.content is None else medium.content)
    if found.digest != medium.digest:
        raise _changed(medium)
    if found.kind != medium.kind:
        raise UserError(f"{name_of(medium)}: contains {one_of(found.kind)}, not {one_of(medium.kind)}")
    return replace(medium, reader=tensor_of)


def content_of(medium: ConditionMedium) -> bytes:
    """Return the bytes of a medium, checked against its digest. Raises UserError, naming the file."""
    if medium.content is None and not medium.path:
        raise UserError(f"{name_of(medium)} cannot be read here: a check of prompts sends only digests")
    content = _content(Path(medium.path)) if medium.content is None else medium.content
    if hashlib.sha256(content).hexdigest() != medium.digest:
        raise _changed(medium)
    return content


def measured(medium: ConditionMedium, most_frames: int) -> tuple[int, int, int]:
    """Return the number of frames, height and width of a medium, from the headers of its file.

    Counts at most `most_frames` + 1 frames. Raises UserError, naming the file.
    """
    from dgpo_core.media.pixels import Unreadable, measure

    try:
        return measure(content_of(medium), most_frames)
    except (Unreadable, NotInstalled) as error:
        raise UserError(f"{name_of(medium)}: {clean(str(error), 500)}") from error


def pixels_of(medium: ConditionMedium) -> Pixels:
    """Decode a medium. Raises UserError, naming the file."""
    known: Pixels | None = medium.pixels
    return _decoded(content_of(medium), name_of(medium)) if known is None else known


def tensor_of(medium: ConditionMedium) -> Tensor:
    """See `ConditionMedium.read`."""
    import torch

    return torch.from_numpy(pixels_of(medium).floats())


def _examined_file(path: Path) -> _Known:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return _examined(_content(path), str(path))  # raises with the reason
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = _examined(_content(path), str(path))
    return _KNOWN[key]


def _examined(content: bytes, name: str) -> _Known:
    pixels = _decoded(content, name)
    kind: Literal["image", "video"] = "image" if pixels.values.ndim == 3 else "video"
    return _Known(kind, hashlib.sha256(content).hexdigest(), pixels.notes)


def _content(path: Path) -> bytes:
    """Read the bytes of a file. Raises UserError."""
    shown = clean(str(path), 300)
    try:
        return read_file(path, MAX_BYTES)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{shown}: is a broken symbolic link") from error
        raise UserError(f"{shown}: no such file{_near(path)}") from error
    except (OSError, ValueError) as error:
        reason = why(error)
        raise UserError(f"{shown}: {reason if reason.startswith('is ') else f'cannot be read: {reason}'}") from error
    except MemoryError as error:
        raise UserError(f"{shown}: not enough memory to read it") from error


def _decoded(content: Source, name: str) -> Pixels:
    from dgpo_core.media.pixels import Unreadable, read_pixels

    begin = f"{clean(name, 300)}: " if name else ""
    try:
        return read_pixels(content)
    except (Unreadable, NotInstalled) as error:
        raise UserError(f"{begin}{clean(str(error), 500)}") from error
    except MemoryError as error:
        raise UserError(f"{begin}not enough memory to decode it") from error


def _near(path: Path) -> str:
    """Return "; ..." that names a file with a similar name, or the missing directory; else ""."""
    try:
        if not path.parent.is_dir():
            return f"; no such directory: {clean(str(path.parent), 200)}"
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, NEIGHBORS)]
    except (OSError, ValueError):
        return ""
    found = [name for name in names if name.casefold() == path.name.casefold()]
    found = found or get_close_matches(path.name, names, 1, 0.8)
    return f"; did you mean {clean(found[0], 200)}?" if found else ""


def name_of(medium: ConditionMedium) -> str:
    """Return the name of a medium for messages."""
    return clean(medium.path, 300) or f"the {medium.kind} sha256:{clean(medium.digest, 12)}"


def _changed(medium: ConditionMedium) -> UserError:
    return UserError(
        f"{name_of(medium)}: has changed since the prompts were read (SHA-256 was "
        f"{clean(medium.digest, 12)}…); restore it"
    )

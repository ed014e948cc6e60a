"""Condition media: images and videos that samples are conditioned on, known by the SHA-256 of their bytes.

Light: `dgpo validate` looks at them with it, so torch comes with the first tensor.
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
"""Of one file, as of a request to a reward service. What it unpacks to is bounded by `pixels.MAX_PIXELS`."""
NEIGHBORS = 10_000
"""Names in a directory among which one is looked for that is meant."""


@dataclass(frozen=True, slots=True)
class _Known:
    kind: Literal["image", "video"]
    digest: str
    notes: tuple[str, ...]


_KNOWN: dict[tuple[int, ...], _Known] = {}
"""Files that this process has decoded, by what tells whether they are still the same: device, inode, size, times."""


def condition_medium(source: Path | bytes) -> ConditionMedium:
    """The medium that a file, or its bytes, holds: an image or a video, which is decoded as a whole to find out, each
    distinct file once a process.

    Raises UserError, naming the file: missing, no regular file, unreadable, larger than MAX_BYTES or than
    `pixels.MAX_PIXELS` once unpacked, no image or video, a video where PyAV is not installed.
    """
    if isinstance(source, bytes):
        known = _examined(source, "")
        return ConditionMedium(known.kind, known.digest, content=source, reader=tensor_of)
    known = _examined_file(source)
    return ConditionMedium(known.kind, known.digest, str(source), reader=tensor_of)


def notes_of(medium: ConditionMedium) -> tuple[str, ...]:
    """What reading the file changes or leaves out, in words."""
    return _examined_file(Path(medium.path)).notes if medium.content is None else ()


def checked_medium(medium: ConditionMedium) -> ConditionMedium:
    """The medium with a reader. Raises UserError if it is not what it says it is: its bytes are not there, or others
    than its digest, or no such image or video."""
    found = condition_medium(Path(medium.path) if medium.content is None else medium.content)
    if found.digest != medium.digest:
        raise _changed(medium)
    if found.kind != medium.kind:
        raise UserError(f"{name_of(medium)}: holds {one_of(found.kind)}, not {one_of(medium.kind)}")
    return replace(medium, reader=tensor_of)


def content_of(medium: ConditionMedium) -> bytes:
    """Its bytes, which have its digest. Raises UserError, naming the file."""
    if medium.content is None and not medium.path:
        raise UserError(f"{name_of(medium)} cannot be read here: a check of prompts sends digests alone")
    content = _content(Path(medium.path)) if medium.content is None else medium.content
    if hashlib.sha256(content).hexdigest() != medium.digest:
        raise _changed(medium)
    return content


def measured(medium: ConditionMedium, most_frames: int) -> tuple[int, int, int]:
    """Its frames, of which one more than `most_frames` are counted at most, height and width, by the headers of its
    file. Raises UserError, naming the file."""
    from dgpo_core.media.pixels import Unreadable, measure

    try:
        return measure(content_of(medium), most_frames)
    except (Unreadable, NotInstalled) as error:
        raise UserError(f"{name_of(medium)}: {clean(str(error), 500)}") from error


def pixels_of(medium: ConditionMedium) -> Pixels:
    """What it shows. Raises UserError, naming the file."""
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
        return _examined(_content(path), str(path))  # which says why
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = _examined(_content(path), str(path))
    return _KNOWN[key]


def _examined(content: bytes, name: str) -> _Known:
    pixels = _decoded(content, name)
    kind: Literal["image", "video"] = "image" if pixels.values.ndim == 3 else "video"
    return _Known(kind, hashlib.sha256(content).hexdigest(), pixels.notes)


def _content(path: Path) -> bytes:
    """The bytes of a file. Raises UserError."""
    shown = clean(str(path), 300)
    try:
        return read_file(path, MAX_BYTES)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{shown}: is a link that leads nowhere") from error
        raise UserError(f"{shown}: there is no such file{_near(path)}") from error
    except (OSError, ValueError) as error:
        reason = why(error)
        raise UserError(f"{shown}: {reason if reason.startswith('is ') else f'cannot be read: {reason}'}") from error
    except MemoryError as error:
        raise UserError(f"{shown}: there is no memory to read it") from error


def _decoded(content: Source, name: str) -> Pixels:
    from dgpo_core.media.pixels import Unreadable, read_pixels

    begin = f"{clean(name, 300)}: " if name else ""
    try:
        return read_pixels(content)
    except (Unreadable, NotInstalled) as error:
        raise UserError(f"{begin}{clean(str(error), 500)}") from error
    except MemoryError as error:
        raise UserError(f"{begin}there is no memory to unpack it") from error


def _near(path: Path) -> str:
    """In words, a file beside it whose name is nearly the same, or the part of the path that is not there."""
    try:
        if not path.parent.is_dir():
            return f"; there is no directory {clean(str(path.parent), 200)}"
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, NEIGHBORS)]
    except (OSError, ValueError):
        return ""
    found = [name for name in names if name.casefold() == path.name.casefold()]
    found = found or get_close_matches(path.name, names, 1, 0.8)
    return f"; there is {clean(found[0], 200)}" if found else ""


def name_of(medium: ConditionMedium) -> str:
    """What it is called in messages."""
    return clean(medium.path, 300) or f"the {medium.kind} sha256:{clean(medium.digest, 12)}"


def _changed(medium: ConditionMedium) -> UserError:
    return UserError(
        f"{name_of(medium)}: has another content than when the prompts were read (SHA-256 was "
        f"{clean(medium.digest, 12)}…); put it back"
    )

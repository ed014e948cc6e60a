"""Read pictures whose objects are known: a .jsonl file of `file` and `objects`. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entry", "read_entries", "read_picture"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: str = Field(min_length=1)
    objects: dict[str, NonNegativeInt] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line. where: FILE:LINE for messages; path: of the picture; objects: number of objects by class."""

    where: str
    path: Path
    objects: dict[str, int]


def read_entries(path: Path) -> list[Entry]:
    """Read the lines of a file. Raises UserError, naming the line, for an unreadable or empty file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would split at U+2028 in a name
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            found = _Line.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{where}: {key + ': ' if key else ''}{first['msg']}") from error
        entries.append(Entry(where, path.parent / found.file, found.objects))
    if not entries:
        raise UserError(f'{path} has no pictures; a line is {{"file": "cat.png", "objects": {{"cat": 1, "dog": 0}}}}')
    return entries


def read_picture(entry: Entry) -> Tensor:
    """Return the picture as float32 [3, H, W], RGB in [0, 1], upright. Raises UserError if it cannot be read."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    try:
        with Image.open(entry.path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels have mode {image.mode}; save it with 8 bits per channel")
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{entry.where}: file: {entry.path} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

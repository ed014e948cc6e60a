"""Save the conditions of samples next to them: negative prompts and the first condition medium."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt

__all__ = ["FILE", "SIDE", "between", "thumbnails", "write_conditions"]

log = logging.getLogger(__name__)

FILE = "conditions.json"
SIDE = 128
"""Longest side of a thumbnail in pixels."""


def thumbnails(prompts: Sequence[Prompt]) -> dict[str, Image.Image]:
    """Return a thumbnail of the first medium of each prompt, by its digest; of a video, its first frame.

    A medium that can no longer be read is skipped with a warning, so that the samples are still written.
    """
    found: dict[str, Image.Image] = {}
    for medium in {p.media[0].digest: p.media[0] for p in prompts if p.media}.values():
        try:
            tensor = medium.read()
        except UserError as error:
            log.warning("skipped the thumbnail of a medium: %s", error)
            continue
        frame = tensor if tensor.dim() == 3 else tensor[0]
        image = Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
        image.thumbnail((SIDE, SIDE))
        found[medium.digest] = image
    return found


def write_conditions(directory: Path, prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]) -> None:
    """Write conditions.json, a list with an object per sample (null without conditions), and media-DIGEST.png files.

    Writes nothing if no prompt has a negative prompt or media.
    """
    if not any(prompt.media or prompt.negative is not None for prompt in prompts):
        return
    for digest, image in shown.items():
        image.save(directory / _name(digest))
    records = []
    for prompt in prompts:
        medium = prompt.media[0].digest if prompt.media else ""
        record = {"negative_prompt": prompt.negative, "media": _name(medium) if medium in shown else None}
        records.append({key: value for key, value in record.items() if value is not None} or None)
    (directory / FILE).write_text(json.dumps(records, indent=1), encoding="utf-8")


def _name(digest: str) -> str:
    return f"media-{digest[:12]}.png"


def between(
    tiles: Sequence[Image.Image], columns: int, prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]
) -> tuple[list[Image.Image], int]:
    """Prepend a tile with the prompt's first medium to each row; return the tiles and the new number of columns.

    tiles: all of the same size, row by row, one prompt per row.
    """
    if not shown:
        return list(tiles), columns
    made = []
    for i, tile in enumerate(tiles):
        if i % columns == 0:
            media = prompts[i // columns].media
            made.append(_tile(shown.get(media[0].digest) if media else None, tile.size))
        made.append(tile)
    return made, columns + 1


def _tile(image: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """Center a medium on a white tile."""
    made = Image.new("RGB", size, "white")
    if image is not None:
        small = image.copy()
        small.thumbnail(size)
        made.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return made

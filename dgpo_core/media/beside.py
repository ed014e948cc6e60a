"""What samples were drawn from beside their text, shown beside them: the first of their media, and negative texts."""

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
"""Longest side in pixels of what is shown of a medium."""


def thumbnails(prompts: Sequence[Prompt]) -> dict[str, Image.Image]:
    """The first medium of each prompt that has some, small, by its digest; of a video its first frame. One that cannot
    be read any more is left out, with a warning: it is no reason to lose the samples."""
    found: dict[str, Image.Image] = {}
    for medium in {p.media[0].digest: p.media[0] for p in prompts if p.media}.values():
        try:
            tensor = medium.read()
        except UserError as error:
            log.warning("a medium is not shown: %s", error)
            continue
        frame = tensor if tensor.dim() == 3 else tensor[0]
        image = Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
        image.thumbnail((SIDE, SIDE))
        found[medium.digest] = image
    return found


def write_conditions(directory: Path, prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]) -> None:
    """conditions.json, a list with an object for each sample that has a negative text or media, else null; and
    media-DIGEST.png of each medium. Nothing where no prompt has any."""
    if not any(prompt.media or prompt.negative is not None for prompt in prompts):
        return
    for digest, image in shown.items():
        image.save(directory / _name(digest))
    reported = []
    for prompt in prompts:
        medium = prompt.media[0].digest if prompt.media else ""
        one = {"negative_prompt": prompt.negative, "media": _name(medium) if medium in shown else None}
        reported.append({key: value for key, value in one.items() if value is not None} or None)
    (directory / FILE).write_text(json.dumps(reported, indent=1), encoding="utf-8")


def _name(digest: str) -> str:
    return f"media-{digest[:12]}.png"


def between(
    tiles: Sequence[Image.Image], columns: int, prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]
) -> tuple[list[Image.Image], int]:
    """Tiles of one size and in so many columns, of which every row is of one prompt, with a tile before each row that
    shows the first medium of the prompt; and the number of columns."""
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
    """A medium in the middle of a white tile."""
    made = Image.new("RGB", size, "white")
    if image is not None:
        small = image.copy()
        small.thumbnail(size)
        made.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return made

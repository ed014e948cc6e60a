"""Media to files: images and videos with their prompts, and one sheet to look at."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dgpo_core.media import clips
from dgpo_core.media.beside import between, thumbnails, write_conditions
from dgpo_core.system.files import new_directory
from dgpo_core.types import Prompt

__all__ = ["contact_sheet", "film_strip", "to_image", "write_images"]

log = logging.getLogger(__name__)

ACROSS = 8
"""Most frames of a video side by side."""
GAP = 2
"""Pixels between frames."""
SHEET_SIDE = 256
"""Longest side in pixels of a frame beside its video: 81 of 832x480 would be a PNG of 70 MB."""


def to_image(media: Tensor) -> Image.Image:
    """One image [3, H, W], float in [0, 1]; of a video [F, 3, H, W] its film strip."""
    if media.dim() == 4:
        return film_strip(media)
    return Image.fromarray(_bytes(media).permute(1, 2, 0).numpy())


def film_strip(video: Tensor, largest: int | None = None) -> Image.Image:
    """Every frame of a video [F, 3, H, W], float in [0, 1], in reading order: eight in a row, two pixels apart; reduced
    if it has a side of more than `largest` pixels."""
    frames = [to_image(frame) for frame in video]
    if largest is not None:
        for frame in frames:
            frame.thumbnail((largest, largest))
    return contact_sheet(frames, min(len(frames), ACROSS), GAP)


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Images on a white grid whose cells are as large as the largest; smaller ones stand in the upper left."""
    columns = columns or max(1, min(len(images), round(len(images) ** 0.5 * 1.5)))
    width, height = max(image.width for image in images), max(image.height for image in images)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def write_images(
    directory: Path,
    media: Sequence[Tensor],
    prompts: Sequence[Prompt],
    *,
    columns: int | None = None,
    fps: int | None = None,
) -> None:
    """Media, which may differ in size, as files, a sheet of them all, grid.png, and their prompts, prompts.json.

    Images [3, H, W]: NN.png, and grid.png with so many columns. Videos [F, 3, H, W]: NN.mp4 at `fps` frames a second
    (see `clips`), NN.png with every frame (`film_strip`, to 256 pixels), and grid.png with a row for each video: its
    frames, or eight of them from the first to the last. Where no mp4 can be written, of which `clips.why_not` tells,
    NN.png is all there is, so it keeps the frames as they are.

    Where prompts have media or negative texts, conditions.json and media-DIGEST.png say so (`beside.write_conditions`),
    and on the sheet the first medium of a prompt stands before its row, or, without `columns`, before each image.

    What the directory held before is replaced. Raises UserError if it cannot be written.
    """
    video = media[0].dim() == 4
    with new_directory(directory) as aside:
        images = []
        for i, one in enumerate(media):
            clip = video and _write_clip(aside / f"{i:02d}.mp4", one, fps)
            image = film_strip(one, SHEET_SIDE) if clip else to_image(one)
            images.append(image)
            image.save(aside / f"{i:02d}.png")
        shown = thumbnails(prompts)
        grid = _video_sheet(media, prompts, shown) if video else _sheet(images, columns, prompts, shown)
        grid.save(aside / "grid.png")
        (aside / "prompts.json").write_text(json.dumps([p.text for p in prompts], indent=1), encoding="utf-8")
        write_conditions(aside, prompts, shown)


def _write_clip(path: Path, video: Tensor, fps: int | None) -> bool:
    """Whether the video could be written."""
    if clips.why_not() is not None:
        return False
    try:
        data = clips.encode(_bytes(video).permute(0, 2, 3, 1).numpy(), clips.frame_rate(len(video), fps))
    except ValueError as error:  # no reason to lose a run, nor the other images
        log.warning("%s is left out: %s", path.name, error)
        return False
    path.write_bytes(data)
    return True


def _sheet(
    images: Sequence[Image.Image], columns: int | None, prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]
) -> Image.Image:
    if not shown:
        return contact_sheet(images, columns)
    if columns:
        return contact_sheet(*between(images, columns, prompts[::columns], shown))
    pairs, _ = between(images, 1, prompts, shown)
    return contact_sheet(pairs, 2 * max(1, round((len(images) / 2) ** 0.5)))


def _video_sheet(media: Sequence[Tensor], prompts: Sequence[Prompt], shown: Mapping[str, Image.Image]) -> Image.Image:
    """A row for each video [F, 3, H, W]; all have as many frames."""
    count = len(media[0])
    across = min(count, ACROSS)
    chosen = [round(i * (count - 1) / max(1, across - 1)) for i in range(across)]
    frames = [to_image(video[i]) for video in media for i in chosen]
    return contact_sheet(*between([_easily_seen(frame) for frame in frames], across, prompts, shown))


def _easily_seen(frame: Image.Image) -> Image.Image:
    """A large frame reduced, a tiny one enlarged by a whole number, pixel by pixel, as its mp4 is."""
    factor = max(1, clips.TINY // max(frame.size))
    if factor > 1:
        return frame.resize((factor * frame.width, factor * frame.height), Image.Resampling.NEAREST)
    frame.thumbnail((SHEET_SIDE, SHEET_SIDE))
    return frame


def _bytes(media: Tensor) -> Tensor:
    """Float in [0, 1] to uint8 on the CPU."""
    return (media * 255).round().clamp(0, 255).byte().cpu()

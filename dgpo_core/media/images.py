"""Write images and videos with their prompts and a contact sheet."""

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
"""Maximum number of video frames in a row."""
GAP = 2
"""Pixels between frames."""
SHEET_SIDE = 256
"""Longest side in pixels of a frame in a film strip: 81 frames of 832x480 would be a 70 MB PNG."""


def to_image(media: Tensor) -> Image.Image:
    """Convert an image [3, H, W], float in [0, 1], or a video [F, 3, H, W] as a film strip."""
    if media.dim() == 4:
        return film_strip(media)
    return Image.fromarray(_bytes(media).permute(1, 2, 0).numpy())


def film_strip(video: Tensor, largest: int | None = None) -> Image.Image:
    """Return all frames of a video [F, 3, H, W], float in [0, 1], in rows of eight.

    largest: maximum side of a frame in pixels; larger frames are scaled down.
    """
    frames = [to_image(frame) for frame in video]
    if largest is not None:
        for frame in frames:
            frame.thumbnail((largest, largest))
    return contact_sheet(frames, min(len(frames), ACROSS), GAP)


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Arrange images on a white grid with cells of the largest size; smaller images are aligned to the upper left."""
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
    """Write media, which may differ in size, a contact sheet (grid.png) and the prompts (prompts.json).

    Images [3, H, W]: NN.png, and grid.png with `columns` columns. Videos [F, 3, H, W]: NN.mp4 at `fps` frames per
    second (see `clips`), NN.png with all frames (`film_strip`, at most 256 pixels), and grid.png with up to eight
    frames of each video in a row, from the first to the last. If mp4 files cannot be written (`clips.why_not`), NN.png
    keeps the frames at full size.

    If prompts have media or negative prompts, also writes conditions.json and media-DIGEST.png
    (`beside.write_conditions`), and grid.png shows the first medium of a prompt before its row, or before each image
    without `columns`.

    Replaces the directory. Raises UserError if it cannot be written.
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
    """Write a video as mp4 and return whether this was possible."""
    if clips.why_not() is not None:
        return False
    try:
        data = clips.encode(_bytes(video).permute(0, 2, 3, 1).numpy(), clips.frame_rate(len(video), fps))
    except ValueError as error:  # must not end the run or lose the other files
        log.warning("skipped %s: %s", path.name, error)
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
    """Return a sheet with a row per video [F, 3, H, W]; all videos have the same number of frames."""
    count = len(media[0])
    across = min(count, ACROSS)
    chosen = [round(i * (count - 1) / max(1, across - 1)) for i in range(across)]
    frames = [to_image(video[i]) for video in media for i in chosen]
    return contact_sheet(*between([_resized(frame) for frame in frames], across, prompts, shown))


def _resized(frame: Image.Image) -> Image.Image:
    """Scale a large frame down; enlarge a tiny one by an integer factor, nearest neighbor, like its mp4."""
    factor = max(1, clips.TINY // max(frame.size))
    if factor > 1:
        return frame.resize((factor * frame.width, factor * frame.height), Image.Resampling.NEAREST)
    frame.thumbnail((SHEET_SIDE, SHEET_SIDE))
    return frame


def _bytes(media: Tensor) -> Tensor:
    """Convert float in [0, 1] to uint8 on the CPU."""
    return (media * 255).round().clamp(0, 255).byte().cpu()

"""Media to files: PNG pictures with their prompts, and one grid to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dgpo_core.files import new_directory
from dgpo_core.types import Prompt

__all__ = ["contact_sheet", "to_image", "write_pictures"]


def to_image(media: Tensor) -> Image.Image:
    """One image [3, H, W], float in [0, 1]; of a video [F, 3, H, W] the frames side by side."""
    if media.dim() == 4:
        media = media.permute(1, 2, 0, 3).flatten(2)
    return Image.fromarray((media * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Images of one size on a white grid."""
    columns = columns or max(1, min(len(images), round(len(images) ** 0.5 * 1.5)))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def write_pictures(directory: Path, media: Tensor, prompts: Sequence[Prompt], *, columns: int | None = None) -> None:
    """Media [N, ...] as NN.png, a contact sheet grid.png with so many columns, and prompts.json.

    What the directory held before is replaced. Raises UserError if it cannot be written.
    """
    with new_directory(directory) as aside:
        images = [to_image(one) for one in media]
        for i, image in enumerate(images):
            image.save(aside / f"{i:02d}.png")
        contact_sheet(images, columns).save(aside / "grid.png")
        (aside / "prompts.json").write_text(json.dumps([p.text for p in prompts], indent=1), encoding="utf-8")

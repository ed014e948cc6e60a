"""Pictures on disk show what the tensors hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.pictures import contact_sheet, to_image, write_pictures
from dgpo_core.types import Prompt


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_an_image_pixel_by_pixel() -> None:
    media = noise(3, 4, 6)
    image = to_image(media)
    assert (image.size, image.mode) == ((6, 4), "RGB")
    for y in range(4):
        for x in range(6):
            assert image.getpixel((x, y)) == tuple(round(255 * float(media[c, y, x])) for c in range(3))


def test_values_beyond_the_range_are_clipped() -> None:
    media = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1]).view(1, 1, 5).expand(3, 1, 5)
    assert pixels(to_image(media))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_videos_frames_lie_side_by_side() -> None:
    video = noise(5, 3, 4, 6)
    image = to_image(video)
    assert image.size == (30, 4)
    for i, frame in enumerate(video):
        assert (pixels(image)[:, 6 * i : 6 * i + 6] == pixels(to_image(frame))).all()


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [(1, None, (1, 1)), (2, None, (2, 1)), (6, None, (4, 2)), (12, None, (5, 3)), (5, 2, (2, 3)), (3, 9, (9, 1))],
)
def test_a_contact_sheet(count: int, columns: int | None, grid: tuple[int, int]) -> None:
    """Row by row, with white between and in what is left of the last row."""
    images = [Image.new("RGB", (6, 4), (i, 0, 0)) for i in range(count)]
    sheet = pixels(contact_sheet(images, columns, gap=2))
    wide, high = grid
    assert sheet.shape == (high * 6 - 2, wide * 8 - 2, 3)
    covered = np.zeros(sheet.shape[:2], dtype=bool)
    for i in range(count):
        rows, across = slice(i // wide * 6, i // wide * 6 + 4), slice(i % wide * 8, i % wide * 8 + 6)
        assert (sheet[rows, across] == (i, 0, 0)).all()
        covered[rows, across] = True
    assert (sheet[~covered] == 255).all()


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 2, 3, 4, 6)])
def test_a_directory_of_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    directory = tmp_path / "pictures" / "000010"
    media = noise(*shape)
    write_pictures(directory, noise(5, *shape[1:]), [Prompt("old")] * 5)
    write_pictures(directory, media, [Prompt("a"), Prompt("ä, b"), Prompt("c")])
    assert sorted(p.name for p in directory.iterdir()) == ["00.png", "01.png", "02.png", "grid.png", "prompts.json"]
    assert json.loads((directory / "prompts.json").read_text(encoding="utf-8")) == ["a", "ä, b", "c"]
    for i in range(3):
        with Image.open(directory / f"{i:02d}.png") as image:
            assert (pixels(image) == pixels(to_image(media[i]))).all()
    with Image.open(directory / "grid.png") as grid:
        assert (pixels(grid)[:4, : 6 * (shape[1] if len(shape) == 5 else 1)] == pixels(to_image(media[0]))).all()


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "pictures").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_pictures(tmp_path / "pictures" / "000000", noise(1, 3, 4, 4), [Prompt("a")])

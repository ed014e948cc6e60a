"""Images on disk show what the tensors hold."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.media import clips
from dgpo_core.media.conditions import condition_medium
from dgpo_core.media.files import read_media
from dgpo_core.media.images import contact_sheet, to_image, write_images
from dgpo_core.types import ConditionMedium, Prompt


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


@pytest.mark.parametrize(("count", "across", "rows"), [(1, 1, 1), (5, 5, 1), (8, 8, 1), (9, 8, 2), (33, 8, 5)])
def test_a_videos_frames_in_reading_order(count: int, across: int, rows: int) -> None:
    video = noise(count, 3, 4, 6)
    image = to_image(video)
    assert image.size == (across * 8 - 2, rows * 6 - 2)
    for i, frame in enumerate(video):
        row, column = divmod(i, 8)
        assert (pixels(image)[6 * row : 6 * row + 4, 8 * column : 8 * column + 6] == pixels(to_image(frame))).all()
    assert count == 1 or (pixels(image)[:, 6:8] == 255).all()


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


def listing(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_directory_of_images(tmp_path: Path) -> None:
    directory = tmp_path / "images" / "000010"
    media = noise(3, 3, 4, 6)
    write_images(directory, noise(5, 3, 4, 6), [Prompt("old")] * 5)
    write_images(directory, media, [Prompt("a"), Prompt("ä, b"), Prompt("c")])
    assert listing(directory) == ["00.png", "01.png", "02.png", "grid.png", "prompts.json"]
    assert json.loads((directory / "prompts.json").read_text(encoding="utf-8")) == ["a", "ä, b", "c"]
    for i in range(3):
        with Image.open(directory / f"{i:02d}.png") as image:
            assert (pixels(image) == pixels(to_image(media[i]))).all()
    with Image.open(directory / "grid.png") as grid:
        assert (pixels(grid)[:4, :6] == pixels(to_image(media[0]))).all()


VIDEOS = ["00.mp4", "00.png", "01.mp4", "01.png", "grid.png", "prompts.json"]


def test_a_directory_of_videos(tmp_path: Path) -> None:
    """Read back by what reads videos for rewards."""
    media = noise(2, 5, 3, 4, 6)
    write_images(tmp_path / "v", media, [Prompt("a"), Prompt("b")], columns=2)
    assert listing(tmp_path / "v") == VIDEOS
    factor = 2 * (128 // 6)
    for i in range(2):
        with Image.open(tmp_path / "v" / f"{i:02d}.png") as image:
            assert (pixels(image) == pixels(to_image(media[i]))).all()
        found = read_media(tmp_path / "v" / f"{i:02d}.mp4").tensor
        assert found.shape == (5, 3, 4 * factor, 6 * factor)
        inside = found[:, :, factor // 2 :: factor, factor // 2 :: factor]
        assert float((inside - media[i]).abs().max()) < 0.1
        with av.open(str(tmp_path / "v" / f"{i:02d}.mp4")) as file:
            assert file.streams.video[0].average_rate == 5


def test_one_row_of_the_sheet_is_one_video(tmp_path: Path) -> None:
    """Tiny frames are enlarged by a whole number, large ones reduced; of many, eight from the first to the last."""
    media = torch.arange(2 * 12).view(2, 12, 1, 1, 1).expand(2, 12, 3, 4, 8) / 24
    write_images(tmp_path / "v", media, [Prompt("a"), Prompt("b")])
    with Image.open(tmp_path / "v" / "grid.png") as grid:
        assert grid.size == (8 * (128 + 4) - 4, 2 * (64 + 4) - 4)
        for row in range(2):
            seen = [round(grid.getpixel((132 * i + 60, 68 * row + 30))[0] / 255 * 24) - 12 * row for i in range(8)]
            assert seen == [0, 2, 3, 5, 6, 8, 9, 11]
    write_images(tmp_path / "large", noise(1, 3, 3, 300, 600), [Prompt("a")])
    with Image.open(tmp_path / "large" / "grid.png") as grid:
        assert grid.size == (3 * (256 + 4) - 4, 128)


def test_large_frames_are_whole_in_one_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mp4, and where there is none in the film strip."""
    media = noise(1, 9, 3, 150, 300)
    write_images(tmp_path / "v", media, [Prompt("a")])
    assert read_media(tmp_path / "v" / "00.mp4").tensor.shape == (9, 3, 150, 300)
    with Image.open(tmp_path / "v" / "00.png") as strip:
        assert strip.size == (8 * (256 + 2) - 2, 2 * (128 + 2) - 2)
    monkeypatch.setitem(sys.modules, "av", None)
    write_images(tmp_path / "v", media, [Prompt("a")])
    with Image.open(tmp_path / "v" / "00.png") as strip:
        assert (pixels(strip) == pixels(to_image(media[0]))).all()


def test_videos_where_nothing_can_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    write_images(tmp_path / "v", noise(2, 5, 3, 4, 6), [Prompt("a"), Prompt("b")])
    assert listing(tmp_path / "v") == [name for name in VIDEOS if not name.endswith(".mp4")]


def test_a_video_that_cannot_be_encoded_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode, calls = clips.encode, iter(range(9))

    def moody(frames: np.ndarray, fps: int) -> bytes:
        if next(calls) == 0:
            raise ValueError("libx264 is in no mood")
        return encode(frames, fps)

    monkeypatch.setattr(clips, "encode", moody)
    write_images(tmp_path / "v", noise(2, 5, 3, 4, 6), [Prompt("a"), Prompt("b")])
    assert listing(tmp_path / "v") == VIDEOS[1:]
    assert caplog.messages == ["skipped 00.mp4: libx264 is in no mood"]


def test_images_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_images(tmp_path / "images" / "000000", noise(1, 3, 4, 4), [Prompt("a")])


def medium(value: int, size: tuple[int, int] = (400, 200)) -> ConditionMedium:
    file = BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return condition_medium(file.getvalue())


def test_what_samples_were_drawn_from_lies_beside_them(tmp_path: Path) -> None:
    one, two = medium(10), medium(20)
    prompts = [Prompt("a", media=(one, two), negative="no")] * 2 + [Prompt("b")] * 2 + [Prompt("c", media=(two,))] * 2
    write_images(tmp_path / "out", noise(6, 3, 8, 8), prompts, columns=2)
    first, second = f"media-{one.digest[:12]}.png", f"media-{two.digest[:12]}.png"
    assert {first, second, "conditions.json"} <= set(listing(tmp_path / "out"))
    reported = json.loads((tmp_path / "out" / "conditions.json").read_text())
    assert reported == [{"negative_prompt": "no", "media": first}] * 2 + [None] * 2 + [{"media": second}] * 2
    assert json.loads((tmp_path / "out" / "prompts.json").read_text()) == list("aabbcc")
    with Image.open(tmp_path / "out" / first) as image:
        assert image.size == (128, 64)
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "02.png") as third:
        assert grid.size == (3 * 12 - 4, 3 * 12 - 4)
        assert [grid.getpixel((4, 12 * row + 4)) for row in range(3)] == [(10, 0, 0), (255, 255, 255), (20, 0, 0)]
        assert (pixels(grid)[12:20, 12:20] == pixels(third)).all()
    write_images(tmp_path / "out", noise(3, 3, 8, 8), prompts[::2])
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "00.png") as zeroth:
        assert grid.getpixel((4, 4)) == (10, 0, 0)
        assert (pixels(grid)[:8, 12:20] == pixels(zeroth)).all()
    write_images(tmp_path / "out", noise(1, 2, 3, 8, 8), prompts[:1])
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.getpixel((1, grid.height // 2)) == (10, 0, 0)


def test_a_medium_that_is_gone_costs_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gone.png").write_bytes(medium(3).content or b"")
    gone = condition_medium(tmp_path / "gone.png")
    (tmp_path / "gone.png").unlink()
    write_images(tmp_path / "out", noise(1, 3, 8, 8), [Prompt("a", media=(gone,))])
    assert listing(tmp_path / "out") == ["00.png", "conditions.json", "grid.png", "prompts.json"]
    assert json.loads((tmp_path / "out" / "conditions.json").read_text()) == [None]
    assert "gone.png: no such file" in caplog.text

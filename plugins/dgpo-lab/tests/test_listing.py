"""The images and videos of a directory: their order, and the note about skipped files."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgpo_core.errors import UserError
from dgpo_core.media.files import read_media
from dgpo_core.media.pixels import FORMATS
from dgpo_lab.scoring.listing import expand, image_endings, natural_order


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch()


def listed(directory: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files, and the notes without the directory's path."""
    notes: list[str] = []
    files = expand([directory], notes.append)
    return [path.name for path in files], [note.removeprefix(f"{directory}: ") for note in notes]


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "9.png", "10.png", "11.png", "100.png"],
        ["a1b2.png", "a1b10.png", "a2b1.png", "a10b1.png"],
        ["img.png", "img1.png", "img 2.png"],
        ["01.png", "1.png", "02.png", "2.png"],  # by value, then by characters
        ["a.png", "B.png", "c.png"],
        ["0", "0.5.png", "00000000000000000000000001.png", "2.png"],
        ["x.PNG", "x.png", "X1.png", "x2.png"],
        ["1.jpg", "1.png", "2.jpg", "2.png"],
        ["1", "1.mp4", "1.png"],
        [f"{'9' * 200}.png", f"1{'0' * 200}.png"],
        ["2.png", "٣.png", "４.png", "1٠.png", "²1.png", "³0.png"],  # digits of any script, except superscripts
        ["e\u0301 1.png", "\u00e9 2.png", "e\u0301 10.png", "f.png"],
    ],
)
def test_numbers_compare_by_value(names: list[str]) -> None:
    for seed in range(5):
        shuffled = random.Random(seed).sample(names, len(names))
        assert sorted(shuffled, key=natural_order) == names


def test_images_and_videos_are_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "b10.PNG", "b2.jpg", "b1.mp4", "b9.JPEG", "a.MoV")
    assert listed(tmp_path) == (["a.MoV", "b1.mp4", "b2.jpg", "b9.JPEG", "b10.PNG"], [])


def test_files_keep_the_given_order(tmp_path: Path) -> None:
    touch(tmp_path, "10.png", "2.png")
    (tmp_path / "d").mkdir()
    touch(tmp_path / "d", "11.png", "3.png")
    found = expand([tmp_path / "10.png", tmp_path / "d", tmp_path / "2.png"])
    assert [path.name for path in found] == ["10.png", "3.png", "11.png", "2.png"]


def test_skipped_files_are_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "1.png",
        "._1.png",
        ".DS_Store",
        ".2.png",
        "Thumbs.db",
        "notes.txt",
        "x.eps",
        "x.tga",
        "y.PSD",
        "z.mpg",
    )
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "inner.png").mkdir()
    touch(tmp_path / "inner.png", "deep.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "there.png").symlink_to(tmp_path / "1.png")
    assert listed(tmp_path) == (
        ["1.png", "there.png"],
        [
            "skipped .2.png, ._1.png, .DS_Store (hidden), __MACOSX, inner.png (directories), "
            "gone.png, loop.png (broken links), notes.txt, Thumbs.db (not images or videos by their extension), "
            "x.eps, x.tga, y.PSD and 1 more (unsupported formats)"
        ],
    )


def test_files_of_this_program_are_skipped_without_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "00.mp4", "00.png", "01.png", "grid.png", "prompts.json", "01.annotated.png")
    assert listed(tmp_path) == (["00.mp4", "01.png"], [])


def test_film_strips_are_not_listed_as_images(tmp_path: Path) -> None:
    """Only numbered images next to a video are film strips; a poster image is listed."""
    touch(tmp_path, "00.mp4", "00.png", "01.png", "walk.mp4", "walk.png")
    assert listed(tmp_path)[0] == ["00.mp4", "01.png", "walk.mp4", "walk.png"]
    assert expand([tmp_path / "00.png"]) == [tmp_path / "00.png"]


def test_a_subdirectory_with_images_is_suggested(tmp_path: Path) -> None:
    """GenEval's image directories have this layout."""
    for name in ("10/samples", "2/samples", ".thumbs", "0"):
        (tmp_path / name).mkdir(parents=True)
        touch(tmp_path / name, "0000.png" if name != "0" else "notes.txt")
    with pytest.raises(UserError) as caught:
        expand([tmp_path])
    assert str(caught.value) == (
        f"{tmp_path}: the directory contains no images or videos (skipped 0, 2, 10 (directories), .thumbs (hidden)); "
        f"give the directories that contain them, such as {tmp_path}/2/samples"
    )


def test_a_directory_may_be_named_like_an_image(tmp_path: Path) -> None:
    directory = tmp_path / "set.png"
    directory.mkdir()
    touch(directory, "1.png")
    assert expand([directory]) == [directory / "1.png"]


def test_a_link_to_the_directory_itself(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert listed(tmp_path) == (["1.png"], ["skipped again (directories)"])


def test_all_missing_paths_are_reported(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "mac").mkdir()
    touch(tmp_path / "mac", "._1.png")
    with pytest.raises(UserError) as caught:
        expand([tmp_path / "one.png", tmp_path / "bare", tmp_path / "mac", Path("/dev/null"), Path("with\0zero")])
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/one.png: no such file",
        f"{tmp_path}/bare: the directory contains no images or videos",
        f"{tmp_path}/mac: the directory contains no images or videos (skipped ._1.png (hidden))",
        "/dev/null: is not a regular file",
        "with\0zero: no such file",
    ]


def test_every_extension_of_every_format_is_listed_and_read(tmp_path: Path) -> None:
    """Covers all formats that Pillow writes, except PFM, whose floats are refused."""
    for name in ("jfif", "jpe", "dib", "jp2", "j2k", "tif", "tiff", "ppm", "pgm", "pnm", "apng", "webp", "qoi", "mpo"):
        assert f".{name}" in image_endings()
    Image.init()
    known = Image.registered_extensions()
    endings = [end for end in image_endings() if end != ".pfm" and known.get(end, "") in Image.SAVE]
    assert len(endings) > 15
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for end in endings:
        mode = {".pbm": "1", ".pgm": "L"}.get(end, "RGB")
        image.convert(mode).save(tmp_path / f"x{end}", known[end])
        assert read_media(tmp_path / f"x{end}").tensor.shape == (3, 4, 4), end
    names, notes = listed(tmp_path)
    assert (sorted(names), notes) == (sorted(f"x{end}" for end in endings), [])


def test_formats_that_run_external_programs_are_not_read() -> None:
    assert not {"EPS", "WMF", "PDF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG"} & set(FORMATS)
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf"} & image_endings()

"""Which files a directory stands for, in which order, and what is said of the others."""

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
    """Names of the files, and the notes without the directory's path."""
    notes: list[str] = []
    files = expand([directory], notes.append)
    return [path.name for path in files], [note.removeprefix(f"{directory}: ") for note in notes]


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "9.png", "10.png", "11.png", "100.png"],
        ["a1b2.png", "a1b10.png", "a2b1.png", "a10b1.png"],
        ["img.png", "img1.png", "img 2.png"],
        ["01.png", "1.png", "02.png", "2.png"],  # by value, then by character
        ["a.png", "B.png", "c.png"],
        ["0", "0.5.png", "00000000000000000000000001.png", "2.png"],
        ["x.PNG", "x.png", "X1.png", "x2.png"],
        ["1.jpg", "1.png", "2.jpg", "2.png"],
        ["1", "1.mp4", "1.png"],
        [f"{'9' * 200}.png", f"1{'0' * 200}.png"],
        ["2.png", "٣.png", "４.png", "1٠.png", "²1.png", "³0.png"],  # digits of any script, but no superscripts
        ["e\u0301 1.png", "\u00e9 2.png", "e\u0301 10.png", "f.png"],
    ],
)
def test_numbers_count_by_their_value(names: list[str]) -> None:
    for seed in range(5):
        shuffled = random.Random(seed).sample(names, len(names))
        assert sorted(shuffled, key=natural_order) == names


def test_images_and_videos_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b10.PNG", "b2.jpg", "b1.mp4", "b9.JPEG", "a.MoV")
    assert listed(tmp_path) == (["a.MoV", "b1.mp4", "b2.jpg", "b9.JPEG", "b10.PNG"], [])


def test_files_keep_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "10.png", "2.png")
    (tmp_path / "d").mkdir()
    touch(tmp_path / "d", "11.png", "3.png")
    found = expand([tmp_path / "10.png", tmp_path / "d", tmp_path / "2.png"])
    assert [path.name for path in found] == ["10.png", "3.png", "11.png", "2.png"]


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
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
            "left out .2.png, ._1.png, .DS_Store (hidden), __MACOSX, inner.png (directories), "
            "gone.png, loop.png (links that lead nowhere), notes.txt, Thumbs.db (neither images nor videos by their "
            "endings), x.eps, x.tga, y.PSD and 1 more (of formats that are not read)"
        ],
    )


def test_what_this_program_has_written_is_no_news(tmp_path: Path) -> None:
    touch(tmp_path, "00.mp4", "00.png", "01.png", "grid.png", "prompts.json", "01.annotated.png")
    assert listed(tmp_path) == (["00.mp4", "01.png"], [])


def test_film_strips_are_no_images_of_their_own(tmp_path: Path) -> None:
    """A directory of videos holds videos; a poster that is not named by a number stays."""
    touch(tmp_path, "00.mp4", "00.png", "01.png", "walk.mp4", "walk.png")
    assert listed(tmp_path)[0] == ["00.mp4", "01.png", "walk.mp4", "walk.png"]
    assert expand([tmp_path / "00.png"]) == [tmp_path / "00.png"]


def test_a_directory_of_directories_says_which_to_name(tmp_path: Path) -> None:
    """As GenEval lays out its images."""
    for name in ("10/samples", "2/samples", ".thumbs", "0"):
        (tmp_path / name).mkdir(parents=True)
        touch(tmp_path / name, "0000.png" if name != "0" else "notes.txt")
    with pytest.raises(UserError) as caught:
        expand([tmp_path])
    assert str(caught.value) == (
        f"{tmp_path}: the directory holds no images or videos (left out 0, 2, 10 (directories), .thumbs (hidden)); "
        f"name the directories that do, such as {tmp_path}/2/samples"
    )


def test_a_directory_may_be_called_like_a_image(tmp_path: Path) -> None:
    directory = tmp_path / "set.png"
    directory.mkdir()
    touch(directory, "1.png")
    assert expand([directory]) == [directory / "1.png"]


def test_a_link_to_a_directory_that_holds_itself(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert listed(tmp_path) == (["1.png"], ["left out again (directories)"])


def test_paths_that_lead_nowhere_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "mac").mkdir()
    touch(tmp_path / "mac", "._1.png")
    with pytest.raises(UserError) as caught:
        expand([tmp_path / "one.png", tmp_path / "bare", tmp_path / "mac", Path("/dev/null"), Path("with\0zero")])
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/one.png: there is no such file",
        f"{tmp_path}/bare: the directory holds no images or videos",
        f"{tmp_path}/mac: the directory holds no images or videos (left out ._1.png (hidden))",
        "/dev/null: is not a regular file",
        "with\0zero: there is no such file",
    ]


def test_every_ending_of_every_format_is_taken_and_read(tmp_path: Path) -> None:
    """Of what Pillow writes; PFM has floats, and is refused as such."""
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


def test_formats_that_start_programs_are_never_read() -> None:
    assert not {"EPS", "WMF", "PDF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG"} & set(FORMATS)
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf"} & image_endings()

"""Image and video files as tensors: every kind, every flaw. Expected pixels come from the arrays that were saved."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import dgpo_core.media.pixels as pixels_module
from dgpo_core.errors import UserError
from dgpo_core.media.files import MediaError, check_files, kind_of, read_media
from dgpo_core.media.pixels import MAX_PIXELS

Pixels = np.ndarray[Any, Any]


@pytest.fixture
def pixels() -> Pixels:
    """uint8 [20, 30, 3]."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def read(path: Path) -> Pixels:
    """Back to [.., H, W, 3] in units of 1/255, after the checks that hold for everything."""
    tensor = read_media(path).tensor
    assert (tensor.dtype, tensor.device.type, tensor.is_contiguous()) == (torch.float32, "cpu", True)
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    return tensor.movedim(-3, -1).numpy() * 255


def write_png(path: Path, width: int, height: int, rows: bytes) -> None:
    """A PNG by hand, with whatever size its header claims."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# -- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.dib", "x.tif", "x.ppm", "x.webp", "x.jp2"])
def test_lossless_images_pixel_by_pixel(tmp_path: Path, pixels: Pixels, name: str) -> None:
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name == "x.webp" else {}))
    assert np.allclose(read(tmp_path / name), pixels, atol=1e-3)
    assert read_media(tmp_path / name).notes == ()


def test_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (40, 24), (200, 80, 40)).save(tmp_path / "x.jpg", quality=95)
    found = read(tmp_path / "x.jpg")
    assert found.shape == (24, 40, 3)
    assert np.abs(found - (200, 80, 40)).max() < 4


def test_the_content_counts_not_the_ending(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.mp4")
    assert np.allclose(read(tmp_path / "x.mp4"), pixels, atol=1e-3)


def test_gray_becomes_rgb(tmp_path: Path, pixels: Pixels) -> None:
    gray = pixels[..., 0]
    Image.fromarray(gray).save(tmp_path / "x.png")
    assert np.allclose(read(tmp_path / "x.png"), gray[..., None].repeat(3, 2), atol=1e-3)
    Image.fromarray(gray > 127).save(tmp_path / "bits.png")
    assert np.allclose(read(tmp_path / "bits.png")[..., 1], (gray > 127) * 255, atol=1e-3)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_keep_their_depth(tmp_path: Path, name: str) -> None:
    gray = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    Image.fromarray(gray).save(tmp_path / name)
    found = read_media(tmp_path / name).tensor
    assert np.allclose(found[1].numpy(), gray / 65535, atol=1e-6)
    assert len(found[0].unique()) == 600


def test_a_tiff_of_several_pages(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif", save_all=True, append_images=[Image.new("L", (3, 3))] * 2)
    assert np.allclose(read(tmp_path / "x.tif"), pixels, atol=1e-3)
    assert read_media(tmp_path / "x.tif").notes == ("it contains 3 images; only the first is scored",)


def test_palette_and_cmyk(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30))
    image.quantize(4).save(tmp_path / "p.png")
    assert np.abs(read(tmp_path / "p.png") - (10, 200, 30)).max() < 1e-3
    image.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(read(tmp_path / "c.jpg") - (10, 200, 30)).max() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_shown_on_white_with_a_note(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (6, 6), (100, 100, 100, 255))
    image.paste((100, 100, 100, 51), (0, 0, 3, 6))
    if mode == "PA":
        indexed = Image.new("P", (6, 6), 1)
        indexed.putpalette([0, 0, 0, 100, 100, 100])
        indexed.paste(0, (0, 0, 3, 6))
        indexed.save(tmp_path / "x.png", transparency=0)
        expected = 255.0
    else:
        image.convert(mode).save(tmp_path / "x.png")
        expected = 255 + (100 - 255) * 51 / 255
    found = read(tmp_path / "x.png")
    assert np.abs(found[:, :3] - expected).max() <= 1
    assert np.abs(found[:, 3:] - 100).max() < 1e-3
    assert read_media(tmp_path / "x.png").notes == ("its transparent pixels are shown on white",)


def test_an_opaque_alpha_channel_is_no_news(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "x.png")
    assert read_media(tmp_path / "x.png").notes == ()
    assert np.allclose(read(tmp_path / "x.png"), pixels, atol=1e-3)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(tmp_path: Path, pixels: Pixels, orientation: int, turn: Callable[[Pixels], Pixels]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.allclose(read(tmp_path / "x.png"), turn(pixels), atol=1e-3)


def test_a_image_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (255, 0, 51)).save(tmp_path / "x.png")
    assert np.allclose(read(tmp_path / "x.png"), [[[255, 0, 51]]], atol=1e-3)


# -- videos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png"])
def test_animations_are_videos(tmp_path: Path, name: str) -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, *more = [Image.new("RGB", (16, 12), color) for color in colors]
    options = {"lossless": True} if name == "x.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=more, duration=100, **options)
    found = read(tmp_path / name)
    assert found.shape == (3, 12, 16, 3)
    for frame, color in zip(found, colors, strict=True):
        assert np.abs(frame - color).max() < 3


def test_one_frame_is_a_image(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12), "red").save(tmp_path / "x.gif")
    assert read(tmp_path / "x.gif").shape == (12, 16, 3)


def write_video(path: Path, codec: str, frames: int = 6, size: tuple[int, int] = (64, 48)) -> None:
    """Frame i is 40 * i red; its upper half has 200 of green. Odd sizes are even in every codec."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            array = np.zeros((size[1], size[0], 3), np.uint8)
            array[..., 0] = 40 * i
            array[: size[1] // 2, :, 1] = 200
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode())


CLIPS = [("x.mp4", "mpeg4"), ("x.mov", "mpeg4"), ("x.avi", "mpeg4"), ("x.webm", "libvpx-vp9")]


@pytest.mark.parametrize(("name", "codec"), CLIPS)
def test_video_files(tmp_path: Path, name: str, codec: str) -> None:
    write_video(tmp_path / name, codec)
    found = read(tmp_path / name)
    assert found.shape == (6, 48, 64, 3)
    for i, frame in enumerate(found):
        assert np.abs(frame[:20].mean((0, 1)) - (40 * i, 200, 0)).max() < 25
        assert np.abs(frame[28:].mean((0, 1)) - (40 * i, 0, 0)).max() < 25


@pytest.mark.parametrize(("name", "codec"), CLIPS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_video_that_is_cut_off(tmp_path: Path, name: str, codec: str, share: float) -> None:
    """FFmpeg alone would give its beginning as the whole."""
    write_video(tmp_path / name, codec)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(MediaError, match="the file is truncated"):
        read_media(tmp_path / name)


def test_a_phone_held_upright(tmp_path: Path) -> None:
    """The matrix in an mp4's track header (ISO 14496-12) turns it: (x, y) goes to (-y, x), a quarter clockwise."""
    write_video(tmp_path / "x.mp4", "mpeg4")
    raw = bytearray((tmp_path / "x.mp4").read_bytes())
    at = raw.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", raw[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    raw[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "x.mp4").write_bytes(raw)
    found = read(tmp_path / "x.mp4")
    assert found.shape == (6, 64, 48, 3)
    assert found[0, :, 28:, 1].mean() > 180  # what was above is on the right
    assert found[0, :, :20, 1].mean() < 20


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "x.mp4", "mpeg4")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = r"x\.mp4: reading this video requires PyAV: pip install 'dgpo\[video\]'"
    with pytest.raises(UserError, match=expected):
        check_files([tmp_path / "x.png", tmp_path / "x.mp4"])
    with pytest.raises(UserError, match=expected):
        read_media(tmp_path / "x.mp4")
    check_files([tmp_path / "x.png"])
    read_media(tmp_path / "x.png")


# -- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.bmp"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_image_that_is_cut_off(tmp_path: Path, pixels: Pixels, name: str, share: float) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(MediaError, match=rf"{name}: (cannot be read: |not a readable image)"):
        read_media(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "the file is empty"),
        ("notes.png", b"dear diary", "not a readable image or video"),
        ("zeros.jpg", bytes(100), "not a readable image or video"),
        ("list.mp4", b"#EXTM3U\nfile:///etc/passwd\n", "not a readable image or video"),
        ("ansi.txt", b"\x1b[31mred\x1b[0m", "not a readable image or video"),
        ("box.mp4", b"\0\0\0\x10ftypisom\0\0\0\0", "not a readable video: Invalid data"),
        ("ebml.webm", b"\x1a\x45\xdf\xa3" + bytes(40), "not a readable video: Invalid data"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError) as caught:
        read_media(tmp_path / name)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_a_image_of_no_size(tmp_path: Path, width: int, height: int) -> None:
    write_png(tmp_path / "x.png", width, height, b"")
    with pytest.raises(MediaError, match=r"x\.png: not a readable image"):
        read_media(tmp_path / "x.png")


@pytest.mark.parametrize(("width", "height"), [(11_586, 11_586), (60_000, 60_000), (2**31 - 1, 1)])
def test_a_decompression_bomb(tmp_path: Path, width: int, height: int) -> None:
    write_png(tmp_path / "x.png", width, height, bytes(1000))
    with pytest.raises(MediaError, match=r"x\.png: it would decode to more than 134,217,728 pixels"):
        read_media(tmp_path / "x.png")


def test_sizes_that_pillow_warns_of(tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns of 89 million pixels; the limit here is a higher one, of our own."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read_media, [tmp_path / "x.png"] * 20))
        assert list(warnings.filters) == before
    assert all(np.allclose(one.tensor.movedim(0, -1).numpy() * 255, pixels, atol=1e-3) for one in found)
    assert kind_of(tmp_path / "x.png") == "image"
    assert Image.MAX_IMAGE_PIXELS == 599
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 599)
    with pytest.raises(
        MediaError, match=r"x\.png: it would decode to more than 599 pixels; shorten it or reduce its size"
    ):
        read_media(tmp_path / "x.png")
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 600)
    read_media(tmp_path / "x.png")


def test_a_limit_of_pillow_that_somebody_has_lowered(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(MediaError, match=r"it would decode to more than 598 pixels \(PIL.Image.MAX_IMAGE_PIXELS\)"):
        read_media(tmp_path / "x.png")


def test_a_bomb_of_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "x.mp4", "mpeg4")
    first, *more = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(6)]
    first.save(tmp_path / "x.gif", save_all=True, append_images=more)
    for limit in (6 * 64 * 48 - 1, 6 * 64 * 48):
        monkeypatch.setattr(pixels_module, "MAX_PIXELS", limit)
        for name in ("x.mp4", "x.gif"):
            if limit == 6 * 64 * 48:
                assert len(read_media(tmp_path / name).tensor) == 6
                continue
            with pytest.raises(MediaError, match=rf"{name}: its frames have more than 18,431 pixels"):
                read_media(tmp_path / name)


def test_a_video_without_frames_or_images(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream: Any = out.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(MediaError, match=r"sound\.mp4: it contains no video"):
        read_media(tmp_path / "sound.mp4")
    write_video(tmp_path / "x.avi", "mpeg4", frames=1)
    raw = bytearray((tmp_path / "x.avi").read_bytes())
    at = raw.index(b"movi") + 4
    raw[at : at + 4] = b"JUNK"  # the only frame is no frame now
    tail = raw.rfind(b"idx1")
    raw[tail : tail + 4] = b"JUNK"
    (tmp_path / "x.avi").write_bytes(raw)
    with pytest.raises(MediaError, match=r"x\.avi: it has no frames"):
        read_media(tmp_path / "x.avi")


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"gone\.png: cannot be read: No such file or directory"):
        read_media(tmp_path / "gone.png")


# -- what kind --------------------------------------------------------------------------------------------------


def test_what_a_file_holds(tmp_path: Path, pixels: Pixels) -> None:
    """Told by its content, whatever its name says."""
    image = Image.fromarray(pixels)
    image.save(tmp_path / "still.gif")
    image.save(tmp_path / "one.mp4", format="png")
    image.save(tmp_path / "moves.gif", save_all=True, append_images=[Image.new("RGB", image.size)])
    write_video(tmp_path / "x.mp4", "mpeg4")
    (tmp_path / "x.mp4").rename(tmp_path / "x.png")
    (tmp_path / "notes.png").write_bytes(b"dear diary")
    (tmp_path / "bomb.png").write_bytes(b"")
    write_png(tmp_path / "bomb.png", 60_000, 60_000, b"")
    expected = {
        "still.gif": "image", "one.mp4": "image", "moves.gif": "video", "x.png": "video", "notes.png": None,
        "bomb.png": None, "nowhere.png": None,
    }  # fmt: skip
    assert {name: kind_of(tmp_path / name) for name in expected} == expected

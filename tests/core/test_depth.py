"""Images of 16 bits a channel, and of fewer in 16. The files are written by hand or by FFmpeg, and read back."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dgpo_core.media.files import MediaError, read_media

Pixels = np.ndarray[Any, Any]
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
WHITE = "its transparent pixels are shown on white"


def noise(channels: int, most: int = 65535) -> Pixels:
    """uint16 [9, 7, channels] from 0 to `most`, both of which occur."""
    pixels = np.random.default_rng(channels).integers(0, most + 1, (9, 7, channels), dtype=np.uint16)
    pixels[0, :2] = [[0], [most]]
    return pixels


def png(path: Path, pixels: Pixels, **chunks: bytes) -> Path:
    """A PNG of 16 bits a channel, with more chunks before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0))
    body += b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def tiff(path: Path, width: int, data: bytes, *, bits: int = 16, samples: int = 1, photometric: int = 1) -> Path:
    """An uncompressed little-endian TIFF in one strip, with the few tags that it must have."""
    height = len(data) * 8 // (width * bits * samples)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits), (259, 3, 1, 1),
               (262, 3, 1, photometric), (273, 4, 1, 0), (277, 3, 1, samples), (278, 4, 1, height),
               (279, 4, 1, len(data))]  # fmt: skip
    after = 8 + 2 + 12 * len(entries) + 4
    values = {258: after, 273: after + 2 * samples} if samples > 2 else {273: after + 2 * samples}
    table = b"".join(struct.pack("<HHII", tag, kind, n, values.get(tag, value)) for tag, kind, n, value in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + bytes(4)
    path.write_bytes(head + struct.pack("<H", bits) * samples + data)
    return path


def encoded(path: Path, codec: str, layout: str, pixels: Pixels, **options: str) -> Path:
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base, context.options = layout, Fraction(1), options
    frame = av.VideoFrame.from_ndarray(pixels, format=layout)
    frame.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    return path


def values(path: Path, white: int = 65535) -> Pixels:
    """[H, W, 3] in units of 1 / white, which must be whole ones."""
    found = read_media(path).tensor.double().movedim(0, -1).numpy() * white
    assert np.abs(found - found.round()).max() < 0.01
    return found.round()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_its_sixteen_bits(tmp_path: Path, channels: int) -> None:
    pixels = noise(channels)
    assert np.array_equal(values(png(tmp_path / "x.png", pixels)), np.broadcast_to(pixels, (9, 7, 3)))
    assert read_media(tmp_path / "x.png").notes == ()


@pytest.mark.parametrize(
    ("codec", "layout", "options"),
    [
        ("png", "rgb48be", {"pred": "mixed"}),
        ("tiff", "rgb48le", {"compression_algo": "raw"}),
        ("tiff", "rgb48le", {"compression_algo": "lzw"}),
        ("tiff", "gray16le", {"compression_algo": "deflate"}),
    ],
)
def test_what_ffmpeg_writes(tmp_path: Path, codec: str, layout: str, options: dict[str, str]) -> None:
    pixels = noise(1 if layout.startswith("gray") else 3)
    path = encoded(tmp_path / "x", codec, layout, pixels[..., 0] if layout.startswith("gray") else pixels, **options)
    assert np.array_equal(values(path), np.broadcast_to(pixels, (9, 7, 3)))


def test_an_eight_bit_copy_is_the_same_image(tmp_path: Path) -> None:
    """Level v of 8 bits is 257 v of 16."""
    levels = (noise(3) % 256).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "8.png")
    png(tmp_path / "16.png", levels.astype(np.uint16) * 257)
    assert read_media(tmp_path / "8.png").tensor.allclose(read_media(tmp_path / "16.png").tensor, atol=1e-7, rtol=0)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_of_sixteen_bits(tmp_path: Path, channels: int) -> None:
    pixels = noise(channels)
    alpha = pixels[..., -1:] / 65535
    found = read_media(png(tmp_path / "x.png", pixels))
    expected = pixels[..., :-1] * alpha + 65535 * (1 - alpha)
    assert np.abs(found.tensor.double().movedim(0, -1).numpy() * 65535 - expected).max() < 0.51
    assert found.notes == (WHITE,)
    pixels[..., -1] = 65535
    assert np.array_equal(values(png(tmp_path / "y.png", pixels)), np.broadcast_to(pixels[..., :-1], (9, 7, 3)))
    assert read_media(tmp_path / "y.png").notes == ()


@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_color_of_sixteen_bits(tmp_path: Path, channels: int) -> None:
    pixels = noise(channels)
    pixels[3, 4] = [300, 70, 65000][:channels]
    path = png(tmp_path / "x.png", pixels, tRNS=pixels[3, 4].astype(">u2").tobytes())
    pixels[3, 4] = 65535
    assert np.array_equal(values(path), np.broadcast_to(pixels, (9, 7, 3)))
    assert read_media(path).notes == (WHITE,)


def test_sixteen_bits_are_turned_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(3)
    found = values(png(tmp_path / "x.png", pixels, eXIf=exif.tobytes().removeprefix(b"Exif\0\0")))
    assert np.array_equal(found, np.rot90(pixels, -1))


# -- fewer bits in sixteen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_of_which_the_file_reports(tmp_path: Path, channels: int) -> None:
    """Values up to 4095 as they came from a camera, and an sBIT chunk: not scaled, as the standard demands."""
    pixels = noise(channels, 4095)
    path = png(tmp_path / "x.png", pixels, gAMA=struct.pack(">I", 45455), sBIT=bytes([12] * channels))
    assert np.array_equal(values(path, 4095), np.broadcast_to(pixels, (9, 7, 3)))
    assert read_media(path).notes == ("its sBIT chunk declares 12 bits and its largest value is 4095: white is 4095",)


@pytest.mark.parametrize("replicated", [True, False])
def test_twelve_bits_that_are_scaled(tmp_path: Path, replicated: bool) -> None:
    """sBIT of a PNG that keeps to the standard changes nothing, also if the image is dark."""
    for most in (4095, 255):
        original = noise(3, most)
        pixels = (original << 4 | (original >> 8 if replicated else 0)).astype(np.uint16)
        path = png(tmp_path / "x.png", pixels, sBIT=bytes([12] * 3))
        assert np.array_equal(values(path), pixels)
        assert bool(read_media(path).notes) is (most == 255)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_twelve_bits_of_which_nobody_reports(tmp_path: Path, channels: int) -> None:
    """They are what they say, a dark image, and a note says that."""
    pixels = noise(channels, 4095)
    if channels == 4:
        pixels[..., 3] = 65535
    path = png(tmp_path / "x.png", pixels)
    assert np.array_equal(values(path), np.broadcast_to(pixels[..., :3], (9, 7, 3)))
    (note,) = read_media(path).notes
    assert note.startswith("its largest 16-bit value is 4095 of 65535, so it is scored as a dark image")


@pytest.mark.parametrize(("most", "noted"), [(0, False), (1, True), (16383, True), (16384, False)])
def test_when_a_image_is_dark(tmp_path: Path, most: int, noted: bool) -> None:
    assert bool(read_media(png(tmp_path / "x.png", noise(1, most))).notes) is noted


def test_a_tiff_of_twelve_bits(tmp_path: Path) -> None:
    """Two values in three bytes, the first one's upper eight bits first; the tag says what is white."""
    pixels = noise(1, 4095)[:8, :6, 0]
    a, b = pixels.reshape(-1, 2).T.astype(int)
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    path = tiff(tmp_path / "x.tif", 6, packed, bits=12)
    assert np.array_equal(values(path, 4095)[..., 0], pixels)
    assert read_media(path).notes == ()


def test_a_tiff_in_which_zero_is_white(tmp_path: Path) -> None:
    pixels = noise(1)
    path = tiff(tmp_path / "x.tif", 7, pixels.astype("<u2").tobytes(), photometric=0)
    assert np.array_equal(values(path)[..., 0], 65535 - pixels[..., 0].astype(int))


def test_what_pillow_reads_with_eight_bits_is_said(tmp_path: Path) -> None:
    pixels = noise(4)
    path = tiff(tmp_path / "x.tif", 7, pixels.astype("<u2").tobytes(), samples=4, photometric=5)
    assert read_media(path).notes == ("only the upper 8 of its 16 bits are read",)
    frames = [Image.fromarray(noise(1, most)[..., 0]) for most in (65535, 65534)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    found = read_media(tmp_path / "x.png")
    assert found.notes == ("only the upper 8 of its 16 bits are read",)
    assert np.array_equal((found.tensor[1, 0] * 255).round().numpy(), noise(1, 65534)[..., 0] >> 8)


@pytest.mark.parametrize(("kind", "name"), [("<f4", "F"), ("<i4", "I"), ("<i2", "I")])
def test_pixels_of_which_nobody_says_what_is_white(tmp_path: Path, kind: str, name: str) -> None:
    if kind == "<i2":
        tiff(tmp_path / "x.tif", 7, noise(1).tobytes())
        raw = (tmp_path / "x.tif").read_bytes()
        signed = struct.pack("<HHII", 278, 4, 1, 9)
        (tmp_path / "x.tif").write_bytes(raw.replace(signed, struct.pack("<HHII", 339, 3, 1, 2)))
    else:
        Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert image.mode == name
    with pytest.raises(
        MediaError, match=r"x\.tif: its pixels are 32-bit, signed or floating-point values without a defined white"
    ):
        read_media(tmp_path / "x.tif")

"""mp4 files show what the frames hold. Read back with PyAV; expected pixels come from the frames that were written."""

from __future__ import annotations

import io
import sys
from typing import Any

import av
import numpy as np
import pytest

from dgpo_core.media import clips
from dgpo_core.media.clips import encode, frame_rate, why_not

Frames = np.ndarray[Any, Any]


def moving(count: int, height: int, width: int) -> Frames:
    """Colors that change smoothly over the image and drift from frame to frame: uint8 [F, H, W, 3]."""
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x + f / 3 + c) * np.cos(y - c) for f in range(count) for c in range(3)]
    return (
        np.rint(127.5 + 120 * np.stack(waves)).astype(np.uint8).reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    )


def read(data: bytes) -> tuple[Frames, Any]:
    """Frames in [0, 255] and the stream."""
    with av.open(io.BytesIO(data)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        return frames.astype(float), file.streams.video[0]


@pytest.mark.parametrize(
    ("shape", "factor", "size"),
    [
        ((5, 32, 32), 8, (256, 256)),
        ((3, 31, 17), 8, (248, 136)),
        ((1, 1, 1), 256, (256, 256)),
        ((4, 128, 100), 2, (256, 200)),
        ((4, 129, 100), 1, (130, 100)),
        ((2, 135, 201), 1, (136, 202)),
        ((17, 240, 416), 1, (240, 416)),
    ],
)
def test_frames_come_back(shape: tuple[int, int, int], factor: int, size: tuple[int, int]) -> None:
    """Tiny ones enlarged pixel by pixel, odd ones with their last row and column twice."""
    frames = moving(*shape)
    found, stream = read(encode(frames, 16))
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert found.shape == (shape[0], *size, 3)
    enlarged = np.stack([np.kron(f, np.ones((factor, factor, 1))) for f in frames])
    height, width = enlarged.shape[1:3]
    assert np.abs(found[:, :height, :width] - enlarged).max() <= 12
    assert np.abs(found[:, :height, :width] - enlarged).mean() <= 2
    assert np.abs(found[:, height:, :width] - enlarged[:, -1:][:, : size[0] - height]).max(initial=0) <= 12
    assert np.abs(found[:, :height, width:] - enlarged[:, :, -1:][:, :, : size[1] - width]).max(initial=0) <= 12


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255), (90, 160, 30)])
def test_colors_are_those_of_the_frames(color: tuple[int, int, int]) -> None:
    """And the file says by which matrix, or players would guess one by the size."""
    frames = np.full((2, 16, 16, 3), color, dtype=np.uint8)
    found, stream = read(encode(frames, 16))
    assert np.abs(found - frames[0, 0, 0]).max() <= 4
    assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)


def test_one_pixel_of_another_color_stays_one() -> None:
    """Although the colors of yuv420p have half the size."""
    frames = np.full((1, 8, 8, 3), 230, dtype=np.uint8)
    frames[0, 3, 4] = (220, 30, 30)
    found, _ = read(encode(frames, 16))
    side = 32  # 256 / 8
    assert np.abs(found[0, 3 * side : 4 * side, 4 * side : 5 * side] - frames[0, 3, 4]).max() <= 6
    assert np.abs(found[0, 3 * side : 4 * side, 5 * side : 6 * side] - 230).max() <= 6


@pytest.mark.parametrize("fps", [1, 5, 16, 30])
def test_the_frame_rate(fps: int) -> None:
    found, stream = read(encode(moving(6, 16, 16), fps))
    assert len(found) == 6
    assert stream.average_rate == fps
    assert float(stream.duration * stream.time_base) == pytest.approx(6 / fps, abs=1e-3)


@pytest.mark.parametrize(
    ("frames", "asked", "expected"),
    [(33, None, 16), (81, None, 16), (16, None, 16), (5, None, 5), (1, None, 1), (5, 24, 24), (81, 8, 8)],
)
def test_a_short_video_lasts_a_second(frames: int, asked: int | None, expected: int) -> None:
    assert frame_rate(frames, asked) == expected


def test_the_same_frames_are_the_same_bytes() -> None:
    frames = moving(9, 200, 304)
    first = encode(frames, 16)
    encode(moving(3, 64, 64), 16)
    assert encode(frames.copy(), 16) == first
    assert encode(frames[::-1], 16) != first


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """PyAV as if it had been built without these encoders."""
    codec = av.Codec

    def made(name: str, mode: str) -> Any:
        return codec("no such codec" if name in names else name, mode)

    monkeypatch.setattr(av, "Codec", made)


def test_mpeg4_where_there_is_no_x264(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "libx264")
    assert why_not() is None
    frames = moving(5, 32, 32)
    found, stream = read(encode(frames, 16))
    assert stream.codec_context.name == "mpeg4"
    enlarged = np.stack([np.kron(f, np.ones((8, 8, 1))) for f in frames])
    assert np.abs(found - enlarged).mean() <= 4


def test_what_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not() is None
    without(monkeypatch, *clips.ENCODERS)
    assert str(why_not()).startswith("mp4 files require PyAV with the encoder libx264 or mpeg4; av ")
    monkeypatch.setitem(sys.modules, "av", None)
    assert why_not() == "mp4 files require PyAV: pip install 'dgpo[video]'"


def test_frames_that_the_encoder_refuses() -> None:
    with pytest.raises(ValueError, match="libx264 cannot encode 20000x2: "):
        encode(np.zeros((1, 2, 20000, 3), dtype=np.uint8), 16)

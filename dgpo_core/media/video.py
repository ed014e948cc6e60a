"""Decode video files with PyAV, an optional dependency: `pip install 'dgpo[video]'`.

Supports only common containers, recognized by their first bytes: FFmpeg's detection would also follow playlists to
other files and read text as images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["HEAD", "NotInstalled", "container", "is_installed", "measure", "read_frames"]

HEAD = 16
"""Number of bytes that identify the container."""
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
"""Brands of image formats that share the mp4 container."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def container(head: bytes) -> str | None:
    """Return FFmpeg's name of the container of a file with these first bytes; None if it is not supported."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and head[8:12] not in STILL_BRANDS:
        return "mov"
    if head.startswith(EBML):
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def is_installed() -> bool:
    """Return whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


class NotInstalled(ValueError):
    """PyAV is not installed."""

    def __init__(self) -> None:
        super().__init__("reading this video requires PyAV: pip install 'dgpo[video]'")


def read_frames(handle: IO[bytes], kind: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode all frames of the first video stream of an open file, upright: RGB uint8 [F, H, W, 3].

    kind: its `container`. Raises ValueError if there is no video stream or no frame, if the file is truncated or
    damaged, or if its frames have more than `max_pixels` pixels in total; NotInstalled without PyAV.
    """
    with _opened(handle, kind) as opened:
        return _decoded(opened.decode(opened.streams.video[0]), max_pixels)


def measure(handle: IO[bytes], kind: str, most: int) -> tuple[int, int, int]:
    """Return the number of frames (counted by packets, up to `most` + 1), height and width, without decoding.

    Raises ValueError and NotInstalled like `read_frames`.
    """
    with _opened(handle, kind) as opened:
        stream = opened.streams.video[0]
        frames = 0
        for packet in opened.demux(stream):
            frames += bool(packet.size)
            if frames > most:
                break
        return frames, stream.height, stream.width


@contextmanager
def _opened(handle: IO[bytes], kind: str) -> Iterator[InputContainer]:
    if not is_installed():
        raise NotInstalled
    import av

    if not _whole(handle, kind):
        raise ValueError("the file is truncated")
    handle.seek(0)
    try:
        with av.open(handle, mode="r", format=kind) as opened:
            if not opened.streams.video:
                raise ValueError("it contains no video")
            yield opened
    except av.error.FFmpegError as error:
        raise ValueError(f"not a readable video: {error.strerror}") from error


def _decoded(frames: object, max_pixels: int) -> NDArray[np.uint8]:
    images: list[NDArray[np.uint8]] = []
    frame: VideoFrame
    for frame in frames:  # type: ignore[attr-defined]
        if frame.is_corrupt:
            raise ValueError(f"frame {len(images)} is damaged")
        if (len(images) + 1) * frame.width * frame.height > max_pixels:
            raise ValueError(f"its frames have more than {max_pixels:,} pixels; shorten it or reduce its size")
        pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        upright = np.rot90(pixels, round(frame.rotation / 90))
        if images and upright.shape != images[0].shape:
            raise ValueError(f"its frames change size at frame {len(images)}")
        images.append(upright)
    if not images:
        raise ValueError("it has no frames")
    return np.stack(images)


def _whole(handle: IO[bytes], kind: str) -> bool:
    """Return whether a file is as long as its container declares; FFmpeg silently accepts truncated files."""
    length = handle.seek(0, 2)
    handle.seek(0)
    if kind == "mov":
        return _whole_boxes(handle, length)
    if kind == "avi":
        announced = int.from_bytes(handle.read(8)[4:], "little")
        return announced == 0xFFFFFFFF or 8 + announced <= length
    handle.read(4)
    start = _vint(handle)
    handle.seek(start or 0, 1)
    if handle.read(4) != SEGMENT:
        return True  # left to FFmpeg
    size = _vint(handle)
    return size is None or handle.tell() + size <= length


def _whole_boxes(handle: IO[bytes], length: int) -> bool:
    at = 0
    while at + 8 <= length:
        handle.seek(at)
        size = int.from_bytes(handle.read(8)[:4], "big")
        if size == 1:
            size = int.from_bytes(handle.read(8), "big")
        if size == 0:  # the last box, up to the end of the file
            return True
        if size < 8:
            return True  # invalid; FFmpeg reports it
        at += size
    return at <= length


def _vint(handle: IO[bytes]) -> int | None:
    """Read a variable-length EBML integer; None for an unknown size (a stream that was recorded live)."""
    first = handle.read(1)[0:1]
    if not first or first == b"\x00":
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + handle.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value

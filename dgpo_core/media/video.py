"""Frames of video files, through PyAV, which is an extra: `pip install 'dgpo[video]'`.

Only the containers that people keep clips in, recognized by their first bytes: FFmpeg's guess would also follow
playlists to other files and read text as images.
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
"""Bytes that tell the container."""
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
"""Images that are stored like an mp4."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def container(head: bytes) -> str | None:
    """FFmpeg's name of the container that a file with these first bytes is; None if it is not one of ours."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and head[8:12] not in STILL_BRANDS:
        return "mov"
    if head.startswith(EBML):
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def is_installed() -> bool:
    """Whether PyAV is there."""
    return importlib.util.find_spec("av") is not None


class NotInstalled(ValueError):
    """What reads videos is not there."""

    def __init__(self) -> None:
        super().__init__("reading this video needs PyAV: pip install 'dgpo[video]'")


def read_frames(handle: IO[bytes], kind: str, max_pixels: int) -> NDArray[np.uint8]:
    """Every frame of the first video stream of an opened file, upright: uint8 [F, H, W, 3], RGB.

    kind: its `container`. Raises ValueError, saying what is wrong: no video, no frames, cut off, broken, or more than
    `max_pixels` in all frames together; NotInstalled without PyAV.
    """
    with _opened(handle, kind) as opened:
        return _decoded(opened.decode(opened.streams.video[0]), max_pixels)


def measure(handle: IO[bytes], kind: str, most: int) -> tuple[int, int, int]:
    """Frames, height and width of the same, by its headers and the number of its packets, counted up to `most` + 1.
    Raises ValueError and NotInstalled."""
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
        raise ValueError("the file is cut off")
    handle.seek(0)
    try:
        with av.open(handle, mode="r", format=kind) as opened:
            if not opened.streams.video:
                raise ValueError("it holds no video")
            yield opened
    except av.error.FFmpegError as error:
        raise ValueError(f"not a video that can be read: {error.strerror}") from error


def _decoded(frames: object, max_pixels: int) -> NDArray[np.uint8]:
    images: list[NDArray[np.uint8]] = []
    frame: VideoFrame
    for frame in frames:  # type: ignore[attr-defined]
        if frame.is_corrupt:
            raise ValueError(f"frame {len(images)} is damaged")
        if (len(images) + 1) * frame.width * frame.height > max_pixels:
            raise ValueError(f"its frames hold more than {max_pixels:,} pixels; cut it, or make it smaller")
        pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        upright = np.rot90(pixels, round(frame.rotation / 90))
        if images and upright.shape != images[0].shape:
            raise ValueError(f"its frames change size at frame {len(images)}")
        images.append(upright)
    if not images:
        raise ValueError("it has no frames")
    return np.stack(images)


def _whole(handle: IO[bytes], kind: str) -> bool:
    """Whether a file is as long as its container says. FFmpeg reads as far as it gets and calls that the video."""
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
        return True  # FFmpeg knows better
    size = _vint(handle)
    return size is None or handle.tell() + size <= length


def _whole_boxes(handle: IO[bytes], length: int) -> bool:
    at = 0
    while at + 8 <= length:
        handle.seek(at)
        size = int.from_bytes(handle.read(8)[:4], "big")
        if size == 1:
            size = int.from_bytes(handle.read(8), "big")
        if size == 0:  # the last one, up to the end
            return True
        if size < 8:
            return True  # nonsense, which FFmpeg will say
        at += size
    return at <= length


def _vint(handle: IO[bytes]) -> int | None:
    """EBML's number of variable length; None stands for an unknown size (a stream that was recorded live)."""
    first = handle.read(1)[0:1]
    if not first or first == b"\x00":
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + handle.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value

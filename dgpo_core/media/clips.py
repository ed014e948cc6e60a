"""Encode videos as mp4 files with PyAV, an optional dependency: `pip install 'dgpo[video]'`.

The files are for viewing only: lossy H.264 in yuv420p, which every browser and player supports. Encodes on one thread,
so that equal frames give equal bytes.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

__all__ = ["FPS", "TINY", "encode", "frame_rate", "why_not"]

FPS = 16
"""Default frame rate in frames per second, as in Wan's training data."""
TINY = 128
"""Videos with sides up to this many pixels are enlarged, because players show them at their native size."""
ENCODERS = {
    "libx264": {"crf": "10", "preset": "medium"},  # visually lossless
    "mpeg4": {"qmin": "1", "qmax": "2"},  # if PyAV was built without x264; players support it, browsers do not
}
"""Encoders in order of preference, with options for high quality."""
BT709 = np.array(
    [[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]],
    dtype=np.float32,
)
"""RGB in [0, 1] to Y in [0, 1] and Cb, Cr in [-0.5, 0.5] (ITU-R BT.709)."""
TAG = 1
"""FFmpeg's code for the BT.709 matrix, primaries and transfer function, and for the limited range."""


def why_not() -> str | None:
    """Return the reason why mp4 files cannot be written; None if they can."""
    try:
        import av
    except ImportError:
        return "mp4 files require PyAV: pip install 'dgpo[video]'"
    if _encoder() is None:
        return f"mp4 files require PyAV with the encoder {' or '.join(ENCODERS)}; av {av.__version__} has neither"
    return None


def frame_rate(frames: int, requested: int | None = None) -> int:
    """Return the frame rate in frames per second: as requested, else 16, or less so that a short video lasts 1 s."""
    return requested or max(1, min(FPS, frames))


def encode(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Encode RGB frames, uint8 [F, H, W, 3], as an mp4 file. Requires that `why_not` returns None.

    Tiny videos (both sides at most `TINY`) are enlarged by an even integer factor, nearest neighbor. Of others, an odd
    last row or column is duplicated, because yuv420p requires even sides. Raises ValueError if the encoder fails.
    """
    import av

    frames = _fitting(frames)
    name = _encoder()
    assert name is not None
    buffer = io.BytesIO()  # so that the caller handles a full disk
    try:
        with av.open(buffer, "w", format="mp4") as file:
            stream = file.add_stream(name, rate=fps, options=ENCODERS[name])
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.thread_count = 1
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = TAG
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(_yuv420p(frame), format="yuv420p")))
            file.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} cannot encode {frames.shape[2]}x{frames.shape[1]}: {error.strerror}") from error
    return buffer.getvalue()


def _encoder() -> str | None:
    """Return the first encoder that PyAV supports."""
    import av

    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        return name
    return None


def _fitting(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the frames with even sides, tiny ones enlarged."""
    height, width = frames.shape[1:3]
    largest = max(height, width)
    if largest <= TINY:
        factor = 2 * (TINY // largest)
        return frames.repeat(factor, 1).repeat(factor, 2)
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _yuv420p(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a frame [H, W, 3] to FFmpeg's planes, [3 H / 2, W].

    FFmpeg's own conversion blurs colors more, and its default matrix differs between versions.
    """
    height, width = frame.shape[:2]
    ycc = frame.astype(np.float32) / 255 @ BT709.T
    luma = 16 + 219 * ycc[..., 0]
    chroma = 128 + 224 * ycc[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean((1, 3))
    planes = np.concatenate([luma.ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()])
    whole: NDArray[np.uint8] = np.rint(planes).astype(np.uint8)
    return whole.reshape(height * 3 // 2, width)

"""Videos as mp4 files, through PyAV, which is an extra: `pip install 'dgpo[video]'`.

To look at, not to compute with: H.264 in yuv420p, which every browser and player shows. One thread, so that the same
frames are the same bytes.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

__all__ = ["FPS", "TINY", "encode", "frame_rate", "why_not"]

FPS = 16
"""Frames a second, as Wan was trained."""
TINY = 128
"""Videos up to this side, in pixels, are enlarged: players show them in their own size."""
ENCODERS = {
    "libx264": {"crf": "10", "preset": "medium"},  # no difference that is seen
    "mpeg4": {"qmin": "1", "qmax": "2"},  # where PyAV was built without x264; players show it, browsers do not
}
"""Encoders by preference, with the options of good quality."""
BT709 = np.array(
    [[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]],
    dtype=np.float32,
)
"""RGB in [0, 1] to Y in [0, 1] and Cb, Cr in [-0.5, 0.5] (ITU-R BT.709)."""
TAG = 1
"""What FFmpeg calls this matrix, these primaries, this transfer, and the narrow range."""


def why_not() -> str | None:
    """Why no mp4 can be written here, in words; None if it can."""
    try:
        import av
    except ImportError:
        return "mp4 files need PyAV: pip install 'dgpo[video]'"
    if _encoder() is None:
        return f"mp4 files need PyAV with an encoder, {' or '.join(ENCODERS)}; av {av.__version__} was built without"
    return None


def frame_rate(frames: int, asked: int | None = None) -> int:
    """Frames a second: what was asked for, else 16, or fewer of a short video, so that it lasts a second."""
    return asked or max(1, min(FPS, frames))


def encode(frames: NDArray[np.uint8], fps: int) -> bytes:
    """RGB frames uint8 [F, H, W, 3] as an mp4 file, which needs what `why_not` asks for.

    Tiny videos (both sides at most `TINY`) are enlarged by a whole, even number, pixel by pixel, so that players show
    something; others lose nothing but an odd row or column, which is doubled because yuv420p has even sides. Raises
    ValueError if the encoder refuses them.
    """
    import av

    frames = _fitting(frames)
    name = _encoder()
    assert name is not None
    buffer = io.BytesIO()  # a full disk is for whoever writes the bytes to find
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
    """The first encoder that PyAV has."""
    import av

    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        return name
    return None


def _fitting(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames with even sides, tiny ones enlarged."""
    height, width = frames.shape[1:3]
    largest = max(height, width)
    if largest <= TINY:
        factor = 2 * (TINY // largest)
        return frames.repeat(factor, 1).repeat(factor, 2)
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _yuv420p(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame [H, W, 3] as the planes that FFmpeg takes, [3 H / 2, W]: its own conversion blurs the colors more, and
    which matrix it takes has changed between versions."""
    height, width = frame.shape[:2]
    ycc = frame.astype(np.float32) / 255 @ BT709.T
    luma = 16 + 219 * ycc[..., 0]
    chroma = 128 + 224 * ycc[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean((1, 3))
    planes = np.concatenate([luma.ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()])
    whole: NDArray[np.uint8] = np.rint(planes).astype(np.uint8)
    return whole.reshape(height * 3 // 2, width)

"""From tensors to the pictures of a request: PNG, because it is the one format that does not change a pixel.

Shape letters: B samples, F frames, H W pixels.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Picture", "pictures_of"]

TOLERANCE = 1e-3
"""How far values may lie outside [0, 1], from rounding in a decoder."""


@dataclass(frozen=True)
class Picture:
    """One picture as it is sent. pixels: uint8 [H, W, 3]."""

    pixels: np.ndarray

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape and bytes of the pixels, independent of the PNG encoder."""
        return hashlib.sha256(str(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()

    @cached_property
    def url(self) -> str:
        """The picture as a data URL."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def pictures_of(sample: Tensor, *, frames: int, min_side: int, max_pixels: int) -> list[Picture]:
    """Convert an image [3, H, W] or frames of a video [F, 3, H, W], float in [0, 1].

    frames: most frames, evenly spaced, the first and the last included. Raises ValueError if values are not finite or
    not in [0, 1].
    """
    if sample.dim() == 3:
        sample = sample[None]
    count = len(sample)
    chosen = [round(i * (count - 1) / max(1, frames - 1)) for i in range(frames)] if count > frames else range(count)
    pixels = sample[list(chosen)].detach().to("cpu", torch.float32)
    if not bool(((pixels >= -TOLERANCE) & (pixels <= 1 + TOLERANCE)).all()):  # false for nan
        raise ValueError("the media have values that are not in [0, 1]")
    scaled = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Picture(_fitted(frame, min_side, max_pixels)) for frame in scaled]


def _fitted(pixels: np.ndarray, min_side: int, max_pixels: int) -> np.ndarray:
    """Enlarge by repeating pixels, or downscale, to sizes that a model accepts."""
    height, width = pixels.shape[:2]
    factor = -(-min_side // min(height, width))
    if factor > 1:
        pixels = pixels.repeat(factor, 0).repeat(factor, 1)
        height, width = pixels.shape[:2]
    if height * width <= max_pixels:
        return pixels
    scale = math.sqrt(max_pixels / (height * width))
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

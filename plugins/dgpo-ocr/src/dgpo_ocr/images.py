"""Conversion of tensors to images for OCR engines: 8 bits, BGR, large enough.

Dimensions: B samples, F frames, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["enlarge", "to_images"]

LONGEST = 4096
"""Images are not enlarged beyond this longer side, in pixels."""


def to_images(
    media: Tensor, every: int, *, clamp: bool = False, bgr: bool = True
) -> tuple[NDArray[np.uint8], list[bool]]:
    """Convert media to 8-bit images, and check their values.

    media: float RGB in [0, 1], [B, 3, H, W] or [B, F, 3, H, W]; every: take every so-many-th frame, from the first;
    clamp: clamp values to [0, 1]; bgr: order of the output's channels, BGR or RGB.

    Returns the images, uint8 [B, F', H, W, 3] (an image is one frame), and for each sample whether its values are
    valid: finite and in [0, 1] after rounding to 256 levels, or not NaN with `clamp`. Raises ValueError for other
    shapes or dtypes, and for media without pixels.
    """
    if not media.is_floating_point():
        raise ValueError(f"media must be floats in [0, 1], got {media.dtype}")
    if media.dim() not in (4, 5) or media.shape[-3] != 3:
        raise ValueError(f"media must be [B, 3, H, W] or [B, F, 3, H, W], got {list(media.shape)}")
    if 0 in media.shape[1:]:
        raise ValueError(f"media {list(media.shape)} have no pixels")
    frames = media.unsqueeze(1) if media.dim() == 4 else media
    levels = (frames[:, ::every].detach().float() * 255).round()
    fit = (~levels.isnan() if clamp else (levels >= 0) & (levels <= 255)).flatten(1).all(1)
    shown = levels.nan_to_num_(0.0).clamp_(0, 255).to(torch.uint8)
    # NumPy reorders the channels: torch has no negative strides, and engines require contiguous images.
    planes = shown.cpu().numpy()
    return np.ascontiguousarray((planes[:, :, ::-1] if bgr else planes).transpose(0, 1, 3, 4, 2)), fit.tolist()


def enlarge(image: NDArray[np.uint8], min_side: int) -> tuple[NDArray[np.uint8], int]:
    """Enlarge an image [H, W, 3] by an integer factor until its shorter side has `min_side` pixels (bicubic).

    Returns the image and the factor.
    """
    height, width = image.shape[:2]
    factor = max(1, min(-(-min_side // min(height, width)), LONGEST // max(height, width)))
    if factor == 1:
        return image, 1
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), factor

"""From tensors to what OCR engines read: 8 bits, BGR, large enough.

Legend: B samples, F frames, H W height and width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["enlarge", "to_images"]

LONGEST = 4096
"""No image is enlarged beyond this side, however narrow it is."""


def to_images(
    media: Tensor, every: int, *, clamp: bool = False, bgr: bool = True
) -> tuple[NDArray[np.uint8], list[bool]]:
    """Media [B, 3, H, W] or [B, F, 3, H, W], RGB, float, to every so-many-th frame, uint8 [B, F', H, W, 3] in BGR (an
    image is one frame), or in RGB where not `bgr`, and whether each sample is fit to be read.

    A sample is not if a value in those frames does not round to one of the 256 levels: nan, infinite, outside [0, 1];
    or, with `clamp`, which moves such values into the range, if one is nan. Rounded on the device, then moved at once.
    Raises ValueError for any other shape or type, or where there is nothing to see.
    """
    if not media.is_floating_point():
        raise ValueError(f"media must be floats in [0, 1], not {media.dtype}")
    if media.dim() not in (4, 5) or media.shape[-3] != 3:
        raise ValueError(f"media must be [B, 3, H, W] or [B, F, 3, H, W], not {list(media.shape)}")
    if 0 in media.shape[1:]:
        raise ValueError(f"media {list(media.shape)} have no pixels")
    frames = media.unsqueeze(1) if media.dim() == 4 else media
    levels = (frames[:, ::every].detach().float() * 255).round()
    fit = (~levels.isnan() if clamp else (levels >= 0) & (levels <= 255)).flatten(1).all(1)
    shown = levels.nan_to_num_(0.0).clamp_(0, 255).to(torch.uint8)
    # NumPy does the reordering: torch has no negative strides, and engines want contiguous images.
    planes = shown.cpu().numpy()
    return np.ascontiguousarray((planes[:, :, ::-1] if bgr else planes).transpose(0, 1, 3, 4, 2)), fit.tolist()


def enlarge(image: NDArray[np.uint8], min_side: int) -> tuple[NDArray[np.uint8], int]:
    """An image [H, W, 3] enlarged until its shorter side has `min_side` pixels (bicubic), and the whole factor."""
    height, width = image.shape[:2]
    factor = max(1, min(-(-min_side // min(height, width)), LONGEST // max(height, width)))
    if factor == 1:
        return image, 1
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), factor

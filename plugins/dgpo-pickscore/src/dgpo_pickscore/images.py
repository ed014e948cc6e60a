"""Preprocess media for CLIP on the device, and detect invalid images.

Legend: N media, F frames, H W their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any, Literal

import numpy as np
import PIL
import torch
from torch import Tensor

from dgpo_core.transfers import in_float64

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "Preprocessing", "frames_of", "unreadable"]

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalization of OpenAI's CLIP, which most other models use too."""
SLACK = 1e-3
"""Tolerance of values outside [0, 1] for rounding errors, less than half a level of 8-bit images."""
RESAMPLING: dict[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of its filters."""
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Radius of a filter, in pixels of the larger image."""
ONE = 2.0**22
"""PIL's fixed-point unit."""
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
"""Major and minor version of the installed Pillow, whose order of passes is followed."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, center crop and normalize, as PIL and CLIP's image processors do, with tensor operations.

    size: an int for the length of the shorter side (the other is truncated to an integer), or (height, width),
    independent of the aspect ratio; crop: (height, width) of the center crop; mean, std: per channel, for values in
    [0, 1]; rounds_offset: round the crop's offset half to even, as torchvision does, instead of down, as transformers
    does. pads: `size` is the length of the longer side (the other is rounded), and the image is padded with black to
    `crop`, with the smaller half of the border first; keeps_fractions: resize as torchvision resizes float tensors with
    antialiasing, without rounding to 8 bits after each pass, so that values may exceed [0, 1] at edges.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    rounds_offset: bool = False
    pads: bool = False
    keeps_fractions: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, crops: bool = True) -> Preprocessing:
        """Read a preprocessor_config.json of transformers; sizes are ints in old files and mappings in new ones.

        crops: whether the processor crops, as CLIP's does, or resizes to (height, width), as SigLIP's does.
        Raises ValueError with the key that is missing or unsupported.
        """
        for step in ("do_resize", "do_rescale", "do_normalize", *(["do_center_crop"] if crops else [])):
            if not config.get(step, True):
                raise ValueError(f"{step} is false; this step is required")
        if not crops:
            if config.get("do_center_crop"):
                raise ValueError("do_center_crop is true; this step is not supported here")
            config = {**config, "crop_size": config.get("size")}
        if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError(f"rescale_factor is {config['rescale_factor']}; it must be 1/255")
        if config.get("resample", 3) not in RESAMPLING:
            raise ValueError(f"resample is {config['resample']}; allowed are 2 (bilinear) and 3 (bicubic)")
        missing = [key for key in ("size", "crop_size", "image_mean", "image_std") if not config.get(key)]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        size, crop = config["size"], config["crop_size"]
        if not crops and not (isinstance(size, Mapping) and {"height", "width"} <= size.keys()):
            raise ValueError(f"size is {size}; it must have height and width")
        if isinstance(size, Mapping):
            size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        return cls(
            size=size,
            crop=(crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop),
            mean=_three(config["image_mean"]),
            std=_three(config["image_std"]),
            interpolation=RESAMPLING[config.get("resample", 3)],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess images [N, 3, H, W], float in [0, 1]; returns normalized float32 [N, 3, *crop].

        Images are rounded to 8 bits, so a sample and its PNG have the same score. After resizing and cropping, all
        pixel values are equal to those of `Image.resize` of the installed Pillow, on every device (unless
        `keeps_fractions`); the normalized values are rounded to float32 once. Images keep their aspect ratio, and both
        ends of the longer side are cropped; small images are enlarged; a crop larger than the image is padded with
        black.
        """
        levels = in_float64((images * 255).round().clamp(0, 255))  # as `media.images` rounds, in the images' dtype
        before = (images.shape[-2], images.shape[-1])
        height, width = self._resized(*before)
        if _columns_first(before, (height, width)):
            levels = self._resample(levels.mT, height, self.crop[0]).mT
            levels = self._resample(levels, width, self.crop[1])
        else:
            levels = self._resample(levels, width, self.crop[1])
            levels = self._resample(levels.mT, height, self.crop[0]).mT
        mean, std = (levels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((levels / 255 - mean) / std).float().to(images.device)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        if self.pads:
            scale = self.size / float(max(height, width))
            return max(round(height * scale), 1), max(round(width * scale), 1)
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)

    def _resample(self, levels: Tensor, length: int, crop: int) -> Tensor:
        """Resample levels [..., W] to `length`; computes and returns only the middle `crop` pixels."""
        excess = length - crop
        start = round(excess / 2) if self.rounds_offset else excess // 2
        if self.pads:
            start = -(-excess // 2)
        weights = _weights(levels.shape[-1], length, start, crop, self.interpolation, levels.device)
        if self.keeps_fractions:
            return levels @ weights.mT / ONE
        # Sums of integers below 2 ** 53 are exact in float64, in any order of summation.
        return ((levels @ weights.mT + ONE / 2) / ONE).floor().clamp(0, 255)


def _columns_first(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Return whether Pillow resamples columns before rows, for sizes (height, width) before and after.

    The order affects the result, because each pass rounds to 8 bits. It depends on the version: rows first up to 12.1;
    in 12.2 and 12.3, columns first if an image more than a hundred times as high as wide loses height (Image.resize);
    from 13 on, columns first if the height loses more than twice as many pixels as the width (ImagingResampleInner).
    """
    lost_height, lost_width = before[0] - after[0], before[1] - after[1]
    if PILLOW >= (13, 0):
        return lost_height > max(0, 2 * lost_width)
    return PILLOW >= (12, 2) and lost_height > 0 and before[0] > 100 * before[1]


@lru_cache(maxsize=32)
def _weights(before: int, after: int, start: int, count: int, interpolation: str, device: torch.device) -> Tensor:
    """Return the weights of `before` input pixels for the output pixels start, ..., start + count - 1 of `after`:
    float64 [count, before], in units of 1 / ONE. Pixels outside the input are black.

    These are PIL's weights (Resample.c): when shrinking, the filter is stretched; it is truncated at the edges of the
    image, normalized, and rounded to fixed point. The operations and their order are PIL's, so that the fixed-point
    weights are identical.
    """
    scale = float(np.float32(before)) / after  # PIL keeps the size of the image in float32
    stretch = max(scale, 1.0)
    reach = SUPPORT[interpolation] * stretch
    made = np.arange(max(start, 0), min(start + count, after))
    center = (made + 0.5) * scale
    first = np.maximum(center - reach + 0.5, 0).astype(np.int64)
    last = np.minimum((center + reach + 0.5).astype(np.int64), before)
    pixel = first[:, None] + np.arange(ceil(reach) * 2 + 1)
    x = np.abs((pixel - center[:, None] + 0.5) * (1.0 / stretch))
    if interpolation == "bilinear":
        weights = np.where(x < 1, 1 - x, 0.0)
    else:  # Keys' cubic with a = -1/2
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[pixel >= last[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # `sum` adds in another order
    fixed = np.copysign(np.floor(np.abs(weights) * ONE + 0.5), weights)
    inside, place = np.nonzero(pixel < last[:, None])
    out = torch.zeros(count, before, dtype=torch.float64)
    out[inside + max(-start, 0), pixel[inside, place]] = torch.from_numpy(fixed[inside, place])
    return out.to(device)


def frames_of(media: Tensor, every: int) -> Tensor:
    """Select the frames 0, every, 2 * every, ... of images [N, 3, H, W] or videos [N, F, 3, H, W].

    Returns [N, F', 3, H, W]. Raises ValueError for media of another shape or dtype.
    """
    if media.dim() not in (4, 5) or media.shape[-3] != 3 or not media.is_floating_point():
        raise ValueError(
            f"media must be float [N, 3, H, W] or [N, F, 3, H, W], got {str(media.dtype)[6:]} {list(media.shape)}"
        )
    return media[:, None] if media.dim() == 4 else media[:, ::every]


def unreadable(frames: Tensor) -> list[str | None]:
    """Return why each of the media [N, F, 3, H, W] cannot be scored; None for valid media."""
    count, (height, width) = len(frames), frames.shape[-2:]
    if frames.shape[1] == 0:
        return ["the video has no frames"] * count
    if not height or not width:
        return [f"the image has no pixels: it is {width} x {height}"] * count
    pixels = frames.flatten(2)  # [N, F, 3 H W]
    finite = pixels.isfinite().flatten(1).all(1).tolist()
    lowest, highest = pixels.amin((1, 2)).tolist(), pixels.amax((1, 2)).tolist()
    reasons: list[str | None] = []
    for sound, low, high in zip(finite, lowest, highest, strict=True):
        if not sound:
            reasons.append("the image has values that are not finite")
        elif low < -SLACK or high > 1 + SLACK:
            reasons.append(f"the image has values from {low:g} to {high:g}, outside [0, 1]")
        else:
            reasons.append(None)
    return reasons


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

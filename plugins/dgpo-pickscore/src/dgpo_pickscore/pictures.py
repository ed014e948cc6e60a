"""From media to what a CLIP sees, on the device, and which pictures it cannot see.

Legend: N media, F frames, H W their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Preprocessing", "frames_of", "unreadable"]

SLACK = 1e-3
"""How far values may leave [0, 1]: rounding of whoever made them, less than half a level of 8-bit pictures."""
RESAMPLING: dict[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of its filters."""
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""How far a filter reaches from its centre, in pixels of the larger picture."""
ONE = 2.0**22
"""PIL's fixed-point unit."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, centre crop, normalise: what PIL and an image processor of CLIP do, as tensor operations.

    size: the shorter side becomes so long (an int; the other is cut off to an integer), or height and width become so
    long whatever their ratio (a pair); crop: height and width of the centre crop; mean, std: per channel, for values
    in [0, 1]; rounds_offset: the crop's offset is rounded half to even, as torchvision does, not down, as transformers
    does.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    rounds_offset: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """What a preprocessor_config.json of transformers says; sizes are ints in old files and mappings in new ones.

        Raises ValueError naming the key that is missing or asks for something else than is done here.
        """
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not config.get(step, True):
                raise ValueError(f"{step} is false; pictures of any size and brightness would not fit the network")
        if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError(f"rescale_factor is {config['rescale_factor']}, not 1/255")
        if config.get("resample", 3) not in RESAMPLING:
            raise ValueError(f"resample is {config['resample']}; allowed are 2 (bilinear) and 3 (bicubic)")
        missing = [key for key in ("size", "crop_size", "image_mean", "image_std") if not config.get(key)]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        size, crop = config["size"], config["crop_size"]
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
        """Images [N, 3, H, W], float in [0, 1], to float32 [N, 3, *crop], normalised.

        Pictures count as 8-bit ones, and come out as PIL makes them, bit by bit and on every device: a sample and its
        PNG get one score, the one of the published scorers. Non-square pictures keep their ratio and lose both ends
        of the longer side; small ones are enlarged; a crop larger than the picture has a black rim.
        """
        levels = (images.double() * 255).round().clamp(0, 255)
        height, width = self._resized(*images.shape[-2:])
        levels = self._resample(levels, width, self.crop[1])  # first the rows, as PIL does
        levels = self._resample(levels.mT, height, self.crop[0]).mT
        mean, std = (levels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((levels / 255 - mean) / std).float()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)

    def _resample(self, levels: Tensor, length: int, crop: int) -> Tensor:
        """The middle `crop` pixels of levels [..., W] resampled to `length`; the others are never made."""
        excess = length - crop
        start = round(excess / 2) if self.rounds_offset else excess // 2
        weights = _weights(levels.shape[-1], length, start, crop, self.interpolation, levels.device)
        # Sums of integers below 2 ** 53: exact in float64, in whatever order a device adds.
        return ((levels @ weights.mT + ONE / 2) / ONE).floor().clamp(0, 255)


@lru_cache(maxsize=32)
def _weights(before: int, after: int, start: int, count: int, interpolation: str, device: torch.device) -> Tensor:
    """What each of `before` pixels in a row adds to the pixels start, ..., start + count - 1 of `after` made of them:
    float64 [count, before], in units of 1 / ONE. Pixels outside the row are black.

    PIL's own weights (Resample.c): the filter is stretched when a picture shrinks, cut off at its edges and normalised
    there, and rounded to fixed-point numbers.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    center = (torch.arange(start, start + count, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(before, dtype=torch.float64)
    reach = SUPPORT[interpolation] * stretch
    first, last = (center - reach + 0.5).floor(), (center + reach + 0.5).floor()
    x = ((pixel - center + 0.5) / stretch).abs()
    if interpolation == "bilinear":
        weights = (1 - x).clamp_min(0)
    else:  # Keys' cubic with a = -1/2
        near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * ((pixel >= first) & (pixel < last))
    weights = weights / weights.sum(1, keepdim=True)
    fixed = (weights.abs() * ONE + 0.5).floor() * weights.sign()
    inside = (center > 0) & (center < before)
    return torch.where(inside, fixed, 0.0).to(device)


def frames_of(media: Tensor, every: int) -> Tensor:
    """Images [N, 3, H, W] or video [N, F, 3, H, W] to the frames to score, [N, F', 3, H, W]: 0, every, 2 every, ...

    Raises ValueError for anything else.
    """
    if media.dim() not in (4, 5) or media.shape[-3] != 3 or not media.is_floating_point():
        raise ValueError(
            f"media are float [N, 3, H, W] or [N, F, 3, H, W], not {str(media.dtype)[6:]} {list(media.shape)}"
        )
    return media[:, None] if media.dim() == 4 else media[:, ::every]


def unreadable(frames: Tensor) -> list[str | None]:
    """Why each of the media [N, F, 3, H, W] cannot be scored; None for those that can."""
    count, (height, width) = len(frames), frames.shape[-2:]
    if frames.shape[1] == 0:
        return ["the video has no frames"] * count
    if not height or not width:
        return [f"the picture has no pixels: it is {width} x {height}"] * count
    pixels = frames.flatten(2)  # [N, F, 3 H W]
    finite = pixels.isfinite().flatten(1).all(1).tolist()
    lowest, highest = pixels.amin((1, 2)).tolist(), pixels.amax((1, 2)).tolist()
    reasons: list[str | None] = []
    for sound, low, high in zip(finite, lowest, highest, strict=True):
        if not sound:
            reasons.append("the picture has values that are no numbers")
        elif low < -SLACK or high > 1 + SLACK:
            reasons.append(f"the picture has values from {low:g} to {high:g}, outside [0, 1]")
        else:
            reasons.append(None)
    return reasons


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

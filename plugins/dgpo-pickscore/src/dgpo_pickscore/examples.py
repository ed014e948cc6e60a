"""Examples for `dgpo score --self-test`, from a photograph that every installation has.

The photograph is matplotlib's `grace_hopper.jpg`, in the public domain: the official portrait of Rear Admiral Grace
Hopper, U.S. Navy, 512 x 600 pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import Tensor

from dgpo_core.types import Example, Prompt

__all__ = ["looks", "matches", "photograph"]

RIGHT = "a portrait photograph of an elderly woman in a dark navy uniform and a cap, in front of an American flag"
WRONG = ("a bowl of oranges on a wooden table", "a red sports car on a mountain road at sunset")


def photograph() -> Tensor:
    """Return the photograph, float32 [3, 600, 512] in [0, 1]."""
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def matches() -> list[Example]:
    """Return examples for rewards that compare image and prompt."""
    image, right = photograph(), Prompt(RIGHT)
    return [
        Example("the photograph with its description", right, image, good=True),
        *(Example(f"the photograph as {text!r}", Prompt(text), image, good=False) for text in WRONG),
        Example("noise with the photograph's description", right, _noise(image), good=False),
    ]


def looks() -> list[Example]:
    """Return examples for rewards that use only the image."""
    image, prompt = photograph(), Prompt(RIGHT)
    blocks = F.interpolate(F.adaptive_avg_pool2d(image[None], 12), image.shape[1:], mode="nearest")[0]
    return [
        Example("the photograph", prompt, image, good=True),
        Example("noise", prompt, _noise(image), good=False),
        Example("the photograph in coarse blocks under noise", prompt, blocks / 2 + _noise(image) / 2, good=False),
    ]


def _noise(like: Tensor) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(0))

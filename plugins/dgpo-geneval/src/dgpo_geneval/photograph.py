"""Examples for detectors of photographs: matplotlib's sample image of a person."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from dgpo_core.types import Example, Prompt

__all__ = ["photograph_examples"]

log = logging.getLogger(__name__)
PHOTOGRAPH = "grace_hopper.jpg"
"""Grace Hopper, by the United States Navy, in the public domain."""


def _prompt(label: str) -> Prompt:
    return Prompt(f"a photo of a {label}", {"tag": "single_object", "include": [{"class": label, "count": 1}]})


def photograph_examples() -> Sequence[Example]:
    """Return the photograph with a right prompt (good) and a wrong one (bad), and noise with the right one (bad).

    Media are float32 [3, H, W] in [0, 1]. Empty if matplotlib was installed without its sample data.
    """
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    try:
        with Image.open(get_sample_data(PHOTOGRAPH, asfileobj=False)) as image:
            pixels = np.array(image.convert("RGB"), dtype=np.float32) / 255
    except FileNotFoundError:
        log.warning("matplotlib's sample data are not installed: no photograph to test the detector with")
        return ()
    photograph = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    noise = torch.rand(photograph.shape, generator=torch.Generator().manual_seed(0))
    return (
        Example("a person on a photograph of one", _prompt("person"), photograph, good=True),
        Example("a giraffe on a photograph of a person", _prompt("giraffe"), photograph, good=False),
        Example("a person on noise", _prompt("person"), noise, good=False),
    )

"""Pictures that any judge can tell apart or read, for the self-test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dgpo_core.types import Example, Prompt

__all__ = ["drawn_examples", "written_examples"]

SIDE = 128
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def drawn_examples() -> Sequence[Example]:
    """Return a red and a blue square on gray, for a prompt that asks for the red one."""
    question = {"questions": [["Is there a red square in the image?", "Yes"]]}
    prompt = Prompt("a plain red square on a gray background", question)
    return [Example(name, prompt, _square(color), good=color is RED) for name, color in (("red", RED), ("blue", BLUE))]


def written_examples() -> Sequence[Example]:
    """Return a picture with the text that is asked for, one with another text, and one without any."""
    prompt = Prompt('a white sign that says "OPEN"', {"target": "OPEN"})
    return [Example(text or "blank", prompt, _sign(text), good=text == "OPEN") for text in ("OPEN", "MUSIC", "")]


def _sign(text: str) -> torch.Tensor:
    image = Image.new("RGB", (2 * SIDE, SIDE), "white")
    font = ImageFont.load_default(SIDE // 3)
    ImageDraw.Draw(image).text((SIDE, SIDE // 2), text, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)


def _square(color: Sequence[float]) -> torch.Tensor:
    image = torch.full((3, SIDE, SIDE), 0.5)
    image[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = torch.tensor(color)[:, None, None]
    return image

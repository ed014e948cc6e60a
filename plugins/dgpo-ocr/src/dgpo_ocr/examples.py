"""Samples known to be good and bad, drawn with Pillow and its own font."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo_core.types import Example, Prompt

__all__ = ["draw", "drawn_examples"]

Color = tuple[int, int, int]
WHITE, BLACK, RED, BLUE, YELLOW = (255, 255, 255), (0, 0, 0), (190, 20, 30), (20, 40, 110), (250, 215, 60)


def draw(
    text: str, *, height: int = 256, width: int = 256, size: float = 48, ink: Color = BLACK, paper: Color = WHITE
) -> Tensor:
    """Text in the middle of an image [3, height, width], float32 in [0, 1]; a new line starts at a line break."""
    image = Image.new("RGB", (width, height), paper)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((width / 2, height / 2), text, fill=ink, font=font, anchor="mm", align="center")
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)


def drawn_examples(*, one_line: bool = False) -> list[Example]:
    """Four good and four bad images, all of one size: 256 x 256, or strips of one line for a reader that does not look
    for lines."""
    height, newline = (64, " ") if one_line else (256, "\n")

    def example(name: str, asked: str, shown: str, good: bool, ink: Color = BLACK, paper: Color = WHITE) -> Example:
        prompt = Prompt(f'A sign that says "{asked}"', {"target": asked})
        return Example(name, prompt, draw(shown, height=height, size=42, ink=ink, paper=paper), good)

    return [
        example("open, black on white", "OPEN", "OPEN", True),
        example("fresh bread, white on blue", "Fresh Bread", f"Fresh{newline}Bread", True, WHITE, BLUE),
        example("stop, white on red", "STOP", "STOP", True, WHITE, RED),
        example("lower case asked, capitals shown", "tickets", "TICKETS", True, BLACK, YELLOW),
        example("another word", "OPEN", "MUSIC", False),
        example("half of it", "Fresh Bread", "Bread", False, WHITE, BLUE),
        example("one letter wrong", "STOP", "SHOP", False, WHITE, RED),
        example("nothing at all", "tickets", "", False, BLACK, YELLOW),
    ]

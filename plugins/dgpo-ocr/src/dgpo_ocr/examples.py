"""Good and bad example images, drawn with Pillow and its default font."""

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
    """Draw text in the center of an image [3, height, width], float32 in [0, 1]. `size` is the font size in pixels."""
    image = Image.new("RGB", (width, height), paper)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text((width / 2, height / 2), text, fill=ink, font=font, anchor="mm", align="center")
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)


def drawn_examples(*, one_line: bool = False) -> list[Example]:
    """Draw four good and four bad images, 256 x 256 pixels, or 64 x 256 with one line of text if `one_line`."""
    height, newline = (64, " ") if one_line else (256, "\n")

    def example(name: str, target: str, shown: str, good: bool, ink: Color = BLACK, paper: Color = WHITE) -> Example:
        prompt = Prompt(f'A sign that says "{target}"', {"target": target})
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

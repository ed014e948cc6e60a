"""Twenty drawn signs and eleven photographs, each with the texts that are on it.

The labels were written down from the pictures before an engine read them, and are not adjusted to what engines read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["EXPECTED", "PHOTOGRAPHS", "SIGNS", "Photograph", "Sign"]

EXPECTED = {"sign": 18, "photograph": 6, "blank": 3, "empty": 5}
"""How many texts of each group an engine was expected to read, fixed with the labels."""

Color = tuple[int, int, int]
WHITE, BLACK, GRAY, SILVER = (255, 255, 255), (0, 0, 0), (105, 105, 105), (190, 190, 190)
RED, BLUE, YELLOW, GREEN, BROWN = (190, 20, 30), (20, 40, 110), (250, 215, 60), (0, 110, 60), (90, 55, 30)


@dataclass(frozen=True)
class Sign:
    """A text on a plain surface. font: a file of matplotlib's; size: of the font, in pixels; shape: height and width in
    pixels; degrees: counter-clockwise rotation."""

    text: str
    font: str = "DejaVuSans"
    size: int = 64
    ink: Color = BLACK
    paper: Color = WHITE
    shape: tuple[int, int] = (256, 512)
    degrees: float = 0

    @property
    def name(self) -> str:
        """How it looks."""
        tilted = f", {self.degrees:+g}°" if self.degrees else ""
        return f"{self.font} {self.size} px, {self.shape[1]} x {self.shape[0]}{tilted}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text in one line."""
        return (" ".join(self.text.split()),)

    @cached_property
    def pixels(self) -> Tensor:
        """The image [3, H, W], float32 in [0, 1]."""
        import matplotlib

        file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{self.font}.ttf"
        height, width = self.shape
        image = Image.new("RGB", (width, height), self.paper)
        font = ImageFont.truetype(str(file), self.size)
        ImageDraw.Draw(image).text(
            (width / 2, height / 2), self.text, fill=self.ink, font=font, anchor="mm", align="center"
        )
        return _tensor(image.rotate(self.degrees, Image.Resampling.BICUBIC, fillcolor=self.paper))


SIGNS = (
    Sign("OPEN", "DejaVuSans-Bold", 110, WHITE, RED),
    Sign("Fresh\nBread", "DejaVuSerif", 72, BROWN, YELLOW),
    Sign("NO PARKING", "DejaVuSans-Bold", 60, RED, degrees=6),
    Sign("Exit 24", "DejaVuSans", 90, WHITE, GREEN),
    Sign("$3.99", "DejaVuSans-Bold", 120),
    Sign("50% OFF!", "DejaVuSans-BoldOblique", 80, YELLOW, RED),
    Sign("Room 101", "STIXGeneral", 80, degrees=-9),
    Sign("Mind the gap", "DejaVuSans-Oblique", 60, WHITE, BLUE),
    Sign("Gate B12", "DejaVuSansMono-Bold", 84, YELLOW, BLACK),
    Sign("hello, world", "DejaVuSansMono", 24, shape=(128, 256)),
    Sign("www.example.org", "DejaVuSans", 48, BLUE),
    Sign("12:45", "DejaVuSansMono-Bold", 130, GREEN, BLACK),
    Sign("Happy\nBirthday\nAnna", "STIXGeneralItalic", 90, RED, (250, 225, 230), shape=(384, 512)),
    Sign("THE QUICK\nBROWN FOX\nJUMPS OVER\nTHE DOG", "DejaVuSans-Bold", 56, GRAY, SILVER, shape=(320, 512)),
    Sign("Keep left", "DejaVuSans-Bold", 64, YELLOW, BLUE, degrees=12),
    Sign("(555) 010-9999", "DejaVuSerif-Bold", 50),
    Sign("A-7/B", "cmr10", 110),
    Sign("Please ring the bell", "DejaVuSans", 18, shape=(256, 256)),
    Sign("SALE", "DejaVuSerif-Bold", 200, WHITE, BLACK, shape=(512, 768)),
    Sign("one two three\nfour five six\nseven eight nine", "cmtt10", 40, BROWN, (245, 240, 225)),
)


@dataclass(frozen=True)
class Photograph:
    """A file of a package, and the texts on it that a person reads with ease; none if there is no text."""

    package: str
    file: str
    texts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file with its package."""
        return f"{Path(self.file).name} of {self.package}"

    def pixels(self, package: Path) -> Tensor:
        """Read the file from the package's directory: [3, H, W], float32 in [0, 1]."""
        with Image.open(package / self.file) as image:
            return _tensor(image.convert("RGB"))


PHOTOGRAPHS = (
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", ("COMO HOPPER",)),
    Photograph("skimage", "data/page.png", ("Region-based segmentation", "histogram of grey values:")),
    Photograph("skimage", "data/motorcycle_left.png", ("YAMAHA",)),
    Photograph("skimage", "data/motorcycle_right.png", ("YAMAHA",)),
    Photograph("ultralytics", "assets/bus.jpg", ("MADRID", "SEVILLA", "Un minibús 100% eléctrico sí es plan")),
    Photograph("skimage", "data/coffee.png"),
    Photograph("skimage", "data/chelsea.png"),
    Photograph("skimage", "data/coins.png"),
    Photograph("skimage", "data/grass.png"),
    Photograph("skimage", "data/clock_motion.png"),
    Photograph("ultralytics", "assets/zidane.jpg"),
)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)

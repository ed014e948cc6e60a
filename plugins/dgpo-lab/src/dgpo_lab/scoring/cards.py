"""Annotated pages of scored samples: the reward's marks drawn over the image, and below it the prompt, the value and
the clauses. Pages embed their images and need no network."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.media.images import to_image
from dgpo_core.system.files import write_text
from dgpo_core.training.score_samples import Result
from dgpo_core.types import Prompt
from dgpo_schemas.diagnostics import Diagnostics, Mark, understood
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["INDEX", "Cards", "card"]

INDEX = "annotated.html"
SIDES = {"one": (512, 1280), "several": (288, 448)}
"""Minimum and maximum display size of an image's longer side in pixels, for one image and for several side by side.
Images are embedded at their own size, or downscaled to the maximum."""
MOST_FRAMES, UNMARKED_FRAMES = 12, 4
MOST_TEXT = 600
"""Maximum characters of each displayed text."""
NEAR = 0.06
"""Distance of two marks' corners, as a fraction of the image side, below which their texts are stacked."""


class Cards:
    """Writes a page for each result, and an index page, into one directory, which is created on first use."""

    def __init__(self, directory: Path, label: str) -> None:
        self.directory = directory
        self.label = label
        self._written: dict[str, Result] = {}

    def write(self, result: Result, media: Tensor) -> None:
        """Write NAME.annotated.html. Raises UserError if it cannot be written."""
        stem = self._name(result.name)
        diagnostics = understood(result.diagnostics)
        page = card(media, diagnostics, name=result.name, prompt=result.prompt, label=self.label, value=result.value)
        self._keep(f"{stem}.annotated.html", page)
        self._written[stem] = result

    def finish(self) -> None:
        """Write the index page, in the order in which the cards were written; nothing if there are none."""
        if self._written:
            page = _template("index").render(label=self.label, cards=self._written.items())
            self._keep(INDEX, page)

    def _keep(self, file: str, page: str) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self.directory}: {error.strerror or error}") from error
        write_text(self.directory / file, page)

    def _name(self, name: str) -> str:
        """Return a unique file stem: a/sign.png becomes sign, and b/sign.jpg after it sign-2."""
        stem = re.sub(r"[^\w.+-]+", "-", Path(name).stem if "/" in name or "." in name else name).strip("-") or "sample"
        stem = stem[:150]
        number = 1
        while (unique := stem if number == 1 else f"{stem}-{number}") in self._written:
            number += 1
        return unique


def card(media: Tensor, diagnostics: Diagnostics, *, name: str, prompt: Prompt, label: str, value: float | None) -> str:
    """Render the annotated page of one sample.

    Args: media: float in [0, 1], an image [3, H, W] or a video [F, 3, H, W], of which the frames with marks are shown
    (a few frames if there are no marks); value: None if the sample could not be scored.

    Marks are green, red or gray by their `ok`. A mark without a frame index is drawn on every frame, and a mark beyond
    the edge of the image at the edge. The prompt, the label, the value and the clauses follow below the image.
    """
    chosen = _frames(media, diagnostics.marks)
    sides = SIDES["one" if len(chosen) == 1 else "several"]
    shown = [_Shown.of(frame, marks, sides, index) for index, frame, marks in chosen]
    page: str = _template("card").render(
        name=name, prompt=prompt, label=label, value=value, diagnostics=diagnostics, shown=shown, video=media.dim() == 4
    )
    return page


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dgpo_lab.scoring", package_path=""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["clean"] = lambda text: clean(" ".join(text.split()), MOST_TEXT)
    return environment


def _template(name: str) -> Any:
    return _environment().get_template(f"{name}.html.jinja")


@dataclass(frozen=True, slots=True)
class _Shape:
    """A mark's corners in image pixels and the position of its text.

    left, top: in percent of the image; row: the number of texts at the same corner that come before it.
    """

    mark: Mark
    points: Sequence[tuple[float, float]]
    left: float
    top: float
    row: int


@dataclass(frozen=True, slots=True)
class _Shown:
    """A frame: its image as a data URI, its size in pixels, and its display width in CSS pixels."""

    index: int
    uri: str
    width: int
    height: int
    shown_width: int
    shapes: Sequence[_Shape]

    @classmethod
    def of(cls, frame: Tensor, marks: Sequence[Mark], sides: tuple[int, int], index: int) -> _Shown:
        image = to_image(frame)
        width, height = image.size
        least, most = sides
        # Integer factors keep every pixel visible as a square.
        factor = max(1, math.ceil(least / max(image.size))) if max(image.size) < most else most / max(image.size)
        if factor < 1:
            image = image.resize(
                (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS
            )
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return cls(index, uri, width, height, max(1, round(width * factor)), _shapes(marks, width, height))


def _frames(media: Tensor, marks: Sequence[Mark]) -> list[tuple[int, Tensor, list[Mark]]]:
    """Return (index, image [3, H, W], marks) of each frame to show."""
    media = media.detach().float().nan_to_num(0.0)
    if media.dim() == 3:
        return [(0, media, list(marks))]
    count = len(media)
    indices = sorted({mark.frame for mark in marks if mark.frame is not None and mark.frame < count})
    indices = _evenly_spaced(indices, MOST_FRAMES) if indices else _evenly_spaced(range(count), UNMARKED_FRAMES)
    return [(i, media[i], [mark for mark in marks if mark.frame in (None, i)]) for i in indices]


def _evenly_spaced(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` evenly spaced values, including the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _shapes(marks: Sequence[Mark], width: int, height: int) -> list[_Shape]:
    shapes: list[_Shape] = []
    for mark in marks:
        corners = mark.polygon
        if corners is None:
            assert mark.box is not None
            x0, y0, x1, y1 = mark.box
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        points = [(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in corners]
        left, top = 100 * min(x for x, _ in points) / width, 100 * min(y for _, y in points) / height
        labeled = (shape for shape in shapes if shape.mark.text.strip())
        near = sum(max(abs(left - shape.left), abs(top - shape.top)) < 100 * NEAR for shape in labeled)
        shapes.append(_Shape(mark, points, left, top, near))
    return shapes

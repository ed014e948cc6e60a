"""What a reward saw, as a page for each sample: its marks over the image, and below it the prompt, the value and
clause by clause why. Pages hold their images and need no network."""

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
"""Longest side in pixels at which an image is shown, at least and at most: of one, and of several beside each other.
It is embedded in its own size, or in the larger one of these."""
MOST_FRAMES, UNMARKED_FRAMES = 12, 4
MOST_TEXT = 600
"""Characters of one text that are shown."""
NEAR = 0.06
"""Share of an image's side within which the corners of two marks are so close that their texts are stacked."""


class Cards:
    """Writes a card for each result into one directory, which is made when it is needed, and a page that lists them."""

    def __init__(self, directory: Path, label: str) -> None:
        self.directory = directory
        self.label = label
        self._written: dict[str, Result] = {}

    def write(self, result: Result, media: Tensor) -> None:
        """NAME.annotated.html. Raises UserError if it cannot be written."""
        stem = self._name(result.name)
        reported = understood(result.diagnostics)
        page = card(media, reported, name=result.name, prompt=result.prompt, label=self.label, value=result.value)
        self._keep(f"{stem}.annotated.html", page)
        self._written[stem] = result

    def finish(self) -> None:
        """Write the list of the cards, in the order of their writing; nothing if there are none."""
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
        """Of a/sign.png and b/sign.jpg one becomes sign, the other sign-2."""
        stem = re.sub(r"[^\w.+-]+", "-", Path(name).stem if "/" in name or "." in name else name).strip("-") or "sample"
        stem = stem[:150]
        number = 1
        while (found := stem if number == 1 else f"{stem}-{number}") in self._written:
            number += 1
        return found


def card(media: Tensor, diagnostics: Diagnostics, *, name: str, prompt: Prompt, label: str, value: float | None) -> str:
    """A page with the image [3, H, W], or the frames of a video [F, 3, H, W] that have marks, float in [0, 1], every
    mark in green, red or gray by its `ok`; below them the prompt, the reward's label and value (None: could not be
    scored) and a line for each clause.

    Of a video without marks a few frames are shown; a mark that names no frame is on each. Marks beyond the image's
    edge are drawn at the edge.
    """
    chosen = _frames(media, diagnostics.marks)
    sides = SIDES["one" if len(chosen) == 1 else "several"]
    shown = [_Shown.of(frame, marks, sides, index) for index, frame, marks in chosen]
    page: str = _template("card").render(
        name=name, prompt=prompt, label=label, value=value, reported=diagnostics, shown=shown, video=media.dim() == 4
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
    """A mark's corners in pixels of the image, and where its text is: left and top in percent of the image, and how
    many texts of the same corner stand before it."""

    mark: Mark
    points: Sequence[tuple[float, float]]
    left: float
    top: float
    row: int


@dataclass(frozen=True, slots=True)
class _Shown:
    """A frame: its image as a data URI, its own size, the width in CSS pixels that it is shown with."""

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
        # Whole multiples keep every pixel visible as one square.
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
    """(index, image [3, H, W], its marks) of what is to be shown."""
    media = media.detach().float().nan_to_num(0.0)
    if media.dim() == 3:
        return [(0, media, list(marks))]
    count = len(media)
    indices = sorted({mark.frame for mark in marks if mark.frame is not None and mark.frame < count})
    indices = _evenly_spaced(indices, MOST_FRAMES) if indices else _evenly_spaced(range(count), UNMARKED_FRAMES)
    return [(i, media[i], [mark for mark in marks if mark.frame in (None, i)]) for i in indices]


def _evenly_spaced(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _shapes(marks: Sequence[Mark], width: int, height: int) -> list[_Shape]:
    found: list[_Shape] = []
    for mark in marks:
        corners = mark.polygon
        if corners is None:
            assert mark.box is not None
            x0, y0, x1, y1 = mark.box
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        points = [(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in corners]
        left, top = 100 * min(x for x, _ in points) / width, 100 * min(y for _, y in points) / height
        near = sum(max(abs(left - one.left), abs(top - one.top)) < 100 * NEAR for one in found if one.mark.text.strip())
        found.append(_Shape(mark, points, left, top, near))
    return found

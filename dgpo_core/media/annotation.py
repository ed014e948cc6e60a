"""What a reward saw, drawn into the picture: its marks, and below them the prompt, the value and clause by clause why.

Pure: media and diagnostics in, a picture out. Small pictures are enlarged so that the words in them can be read.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.media.pictures import to_image
from dgpo_schemas.diagnostics import Clause, Diagnostics, Mark

__all__ = ["GREEN", "GREY", "MARGIN", "RED", "annotate", "understood"]

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

GREEN: Color = (22, 155, 74)
RED: Color = (214, 40, 40)
GREY: Color = (100, 110, 125)
"""As asked, not as asked, not known."""
INK: Color = (20, 26, 36)
PALE: Color = (222, 226, 232)
MARGIN = 20
"""Pixels around the picture and the text."""
GAP = 12
LINE = 3
"""Width in pixels of a mark's outline."""
SMOOTH = 3
"""Slanted lines are drawn so many times larger, then reduced."""
SIDES = {"one": (512, 1280), "several": (288, 448)}
"""Longest side of a shown picture, at least and at most: of one, and of several beside each other."""
COLUMNS, MOST_FRAMES, UNMARKED_FRAMES = 4, 12, 4
MOST_TEXT = 600
"""Characters of one text that are shown."""


def understood(data: Mapping[str, Any]) -> Diagnostics:
    """What a reward's diagnostics say in the keys with a common meaning. Entries that are not in their form are left
    out: a reward may use these names for something of its own."""
    found = {
        "marks": list(_valid(Mark, data.get("marks"))),
        "clauses": list(_valid(Clause, data.get("clauses"))),
        "reason": reason if isinstance(reason := data.get("reason"), str) and reason.strip() else None,
    }
    return Diagnostics.model_validate(found)


def _valid(model: type[Any], entries: object) -> Iterator[Any]:
    for entry in entries if isinstance(entries, list | tuple) else ():
        try:
            yield model.model_validate(entry)
        except ValidationError:
            continue


def annotate(
    media: Tensor, diagnostics: Diagnostics, *, prompt: str = "", label: str = "", value: float | None = None
) -> Image.Image:
    """The picture [3, H, W] or the frames of a video [F, 3, H, W] that have marks, float in [0, 1], with every mark in
    green, red or grey by its `ok`; below them the prompt, the reward's label and value (None: could not be scored) and
    a line for each clause.

    Of a video without marks a few frames are shown; a mark that names no frame is drawn on each. Marks beyond the
    picture's edge are drawn at the edge. Characters that the font lacks are drawn as boxes.
    """
    shown = _frames(media, diagnostics.marks)
    least, most = SIDES["one" if len(shown) == 1 else "several"]
    pictures = [_marked(frame, marks, least, most) for _, frame, marks in shown]
    captions = [f"frame {index}" if media.dim() == 4 else "" for index, _, _ in shown]
    gallery = _gallery(pictures, captions)
    width = max(gallery.width, SIDES["one"][0])
    panel = _panel(width, prompt, label, value, diagnostics)
    card = Image.new("RGB", (width + 2 * MARGIN, gallery.height + panel.height + 3 * MARGIN), "white")
    card.paste(gallery, (MARGIN + (width - gallery.width) // 2, MARGIN))
    card.paste(panel, (MARGIN, 2 * MARGIN + gallery.height))
    return card


# -- the picture --------------------------------------------------------------------------------------------------


def _frames(media: Tensor, marks: Sequence[Mark]) -> list[tuple[int, Tensor, list[Mark]]]:
    """(index, image [3, H, W], its marks) of what is to be shown."""
    media = media.detach().float().nan_to_num(0.0)
    if media.dim() == 3:
        return [(0, media, list(marks))]
    count = len(media)
    indices = sorted({mark.frame for mark in marks if mark.frame is not None and mark.frame < count})
    indices = _spread(indices, MOST_FRAMES) if indices else _spread(range(count), UNMARKED_FRAMES)
    return [(i, media[i], [mark for mark in marks if mark.frame in (None, i)]) for i in indices]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _marked(frame: Tensor, marks: Sequence[Mark], least: int, most: int) -> Image.Image:
    image = to_image(frame)
    longest = max(image.size)
    factor = float(math.ceil(least / longest)) if longest < least else min(1.0, most / longest)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # Whole multiples keep every pixel visible as one square.
    image = image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    outlines = [(_corners(mark, factor, size), mark) for mark in marks]
    image = _slanted(image, [(corners, mark) for corners, mark in outlines if mark.polygon is not None])
    draw = ImageDraw.Draw(image)
    for corners, mark in outlines:
        if mark.box is not None:
            _rectangle(draw, _around(corners), _color(mark.ok))
    placed: list[Rectangle] = []
    for corners, mark in outlines:
        if text := _clean(mark.text):
            _tag(draw, size, _around(corners), text, _color(mark.ok), placed)
    return image


def _color(ok: bool | None) -> Color:
    return GREY if ok is None else GREEN if ok else RED


def _corners(mark: Mark, factor: float, size: tuple[int, int]) -> list[tuple[float, float]]:
    """A mark's corners in pixels of the shown picture, within it."""
    if mark.polygon is not None:
        points = list(mark.polygon)
    else:
        assert mark.box is not None
        x0, y0, x1, y1 = mark.box
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return [(_within(x * factor, size[0]), _within(y * factor, size[1])) for x, y in points]


def _within(value: float, size: int) -> float:
    return min(max(value, 0.0), float(size))


def _around(corners: Sequence[tuple[float, float]]) -> Rectangle:
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, color: Color) -> None:
    """The outline lies inside the box, between white lines that part it from pixels of its own colour."""
    x0, y0 = math.floor(box[0]), math.floor(box[1])
    x1, y1 = max(math.ceil(box[2]) - 1, x0), max(math.ceil(box[3]) - 1, y0)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white")
    if min(x1 - x0, y1 - y0) > 2 * LINE:
        draw.rectangle((x0 + LINE, y0 + LINE, x1 - LINE, y1 - LINE), outline="white")
    draw.rectangle((x0, y0, x1, y1), outline=color, width=LINE)


def _slanted(image: Image.Image, polygons: Sequence[tuple[Sequence[tuple[float, float]], Mark]]) -> Image.Image:
    """Polygons with a white edge and a breath of their colour inside."""
    if not polygons:
        return image
    layer = Image.new("RGBA", (image.width * SMOOTH, image.height * SMOOTH))
    for corners, mark in polygons:
        points = [(x * SMOOTH, y * SMOOTH) for x, y in corners]
        one = Image.new("RGBA", layer.size)
        draw = ImageDraw.Draw(one)
        draw.polygon(points, fill=(*_color(mark.ok), 40))
        closed = [*points, points[0], points[1]]
        draw.line(closed, fill="white", width=(LINE + 2) * SMOOTH, joint="curve")
        draw.line(closed, fill=_color(mark.ok), width=LINE * SMOOTH, joint="curve")
        layer.alpha_composite(one)
    return Image.alpha_composite(image.convert("RGBA"), layer.reduce(SMOOTH)).convert("RGB")


def _tag(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    around: Rectangle,
    text: str,
    color: Color,
    placed: list[Rectangle],
) -> None:
    """The mark's text on its colour: above the mark, else inside or below, where no other text stands."""
    font = _font(13, bold=True)
    text = _shortened(text, font, size[0] - 10)
    width, height = math.ceil(font.getlength(text)) + 10, 19
    left = min(max(0, math.floor(around[0])), max(0, size[0] - width))
    wanted = [around[1] - height, around[1] + LINE, around[3] - height - LINE, around[3]]
    wanted += [around[1] + i * height for i in range(2, 12)]
    tops = [math.floor(top) for top in wanted if 0 <= top <= size[1] - height] or [0]
    choices = [(left, top, left + width, top + height) for top in tops]
    free = (choice for choice in choices if not any(_overlap(choice, other) for other in placed))
    place = next(free, choices[0])
    placed.append(place)
    x0, y0, x1, y1 = place
    draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius=3, fill=color)
    draw.text((x0 + 5, y0 + height / 2), text, font=font, fill="white", anchor="lm")


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _gallery(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows, each in a fine frame and with its caption, if it has one, below it."""
    columns = min(len(pictures), COLUMNS)
    rows = -(-len(pictures) // columns)
    wide, high = pictures[0].width + 2, pictures[0].height + 2 + (22 if any(captions) else 0)
    sheet = Image.new("RGB", (columns * (wide + GAP) - GAP, rows * (high + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % columns * (wide + GAP), i // columns * (high + GAP)
        draw.rectangle((x, y, x + picture.width + 1, y + picture.height + 1), outline=PALE)
        sheet.paste(picture, (x + 1, y + 1))
        if caption:
            draw.text((x + 1, y + picture.height + 13), caption, font=_font(12), fill=GREY, anchor="lm")
    return sheet


# -- the panel below ----------------------------------------------------------------------------------------------


def _panel(width: int, prompt: str, label: str, value: float | None, diagnostics: Diagnostics) -> Image.Image:
    """Prompt on the left, value and label on the right; below a fine line the clauses, or why there is no value."""
    number = "not scored" if value is None else f"{value:.4g}"
    figure, small = _font(18 if value is None else 26, bold=True), _font(13)
    label = _shortened(_clean(label), small, width // 2)
    right = math.ceil(max(figure.getlength(number), small.getlength(label), 60))
    words = _wrapped(prompt, _font(17), width - right - 2 * GAP, most=6)
    rows: list[tuple[bool | None, list[str]]] = [
        (clause.ok, _wrapped(clause.text, _font(15), width - 30, most=4)) for clause in diagnostics.clauses
    ]
    if value is None and diagnostics.reason:
        rows.append((None, _wrapped(diagnostics.reason, _font(15), width - 30, most=8)))
    head = max(24 * len(words), 52 if label else 34)
    heights = [22 * len(lines) + 8 for _, lines in rows]
    panel = Image.new("RGB", (width, head + (sum(heights) + 2 * GAP if rows else 0)), "white")
    draw = ImageDraw.Draw(panel)
    for i, line in enumerate(words):
        draw.text((0, 24 * i + 12), line, font=_font(17), fill=INK, anchor="lm")
    draw.text((width, 14), number, font=figure, fill=RED if value is None else INK, anchor="rm")
    draw.text((width, 40), label, font=small, fill=GREY, anchor="rm")
    if rows:
        draw.line((0, head + GAP, width, head + GAP), fill=PALE)
    for (ok, lines), top in zip(rows, itertools.accumulate(heights, initial=head + 2 * GAP), strict=False):
        panel.paste(_icon(ok), (0, top + 2))
        for i, line in enumerate(lines):
            draw.text((30, top + 22 * i + 11), line, font=_font(15), fill=INK, anchor="lm")
    return panel


@functools.cache
def _icon(ok: bool | None) -> Image.Image:
    """A tick, a cross or an exclamation mark on a disc of 18 pixels."""
    disc = Image.new("RGB", (72, 72), "white")
    draw = ImageDraw.Draw(disc)
    draw.ellipse((0, 0, 71, 71), fill=_color(ok))
    strokes: list[list[tuple[int, int]]]
    if ok is None:
        strokes = [[(36, 16), (36, 40)], [(36, 54), (36, 55)]]
    elif ok:
        strokes = [[(20, 38), (31, 49), (52, 25)]]
    else:
        strokes = [[(24, 24), (48, 48)], [(48, 24), (24, 48)]]
    for stroke in strokes:
        draw.line(stroke, fill="white", width=8, joint="curve")
        for x, y in (stroke[0], stroke[-1]):
            draw.ellipse((x - 4, y - 4, x + 3, y + 3), fill="white")
    return disc.reduce(4)


# -- text ---------------------------------------------------------------------------------------------------------


@functools.cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib's files, which has most alphabets; else Pillow's own, which has English alone."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin:
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _clean(text: str) -> str:
    """One line of characters that can be drawn, not endlessly many."""
    text = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _shortened(text: str, font: Font, width: float) -> str:
    """The text, cut to a width with dots at the end."""
    if font.getlength(text) <= width:
        return text
    return text[: _fitting(text, font, width - font.getlength("…"))].rstrip() + "…"


def _fitting(text: str, font: Font, width: float) -> int:
    """How many of a text's first characters fit into a width."""
    return bisect.bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count]))


def _wrapped(text: str, font: Font, width: float, *, most: int) -> list[str]:
    """Lines of at most `width` pixels, `most` of them; a word that is too long is broken."""
    lines: list[str] = []
    for word in _pieces(_clean(text).split(), font, width):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], _shortened(" ".join(lines[most - 1 :]), font, width)]
    return lines


def _pieces(words: Iterable[str], font: Font, width: float) -> Iterator[str]:
    for word in words:
        while font.getlength(word) > width and len(word) > 1:
            end = max(1, _fitting(word, font, width))
            yield word[:end]
            word = word[end:]
        yield word

"""Annotated pictures: what is drawn where. Expected places follow from the picture's size and the margin alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import Tensor

import dgpo_core.media.annotation as annotation
from dgpo_core.media.annotation import GREEN, GREY, MARGIN, RED, annotate, understood
from dgpo_schemas.diagnostics import Diagnostics

Pixels = np.ndarray[Any, Any]
CORNER = MARGIN + 1
"""Of the shown picture: a fine frame of one pixel lies around it."""


def grey(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image)


def where(image: Image.Image, color: tuple[int, int, int]) -> Pixels:
    """bool [H, W]: pixels of exactly this colour."""
    return (pixels(image) == color).all(-1)


def bounds(mask: Pixels) -> tuple[int, int, int, int]:
    """Smallest box (x0, y0, x1, y1) around what is True, x1 and y1 exclusive."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def marks(*given: dict[str, Any]) -> Diagnostics:
    return understood({"marks": given})


@pytest.mark.parametrize(("ok", "color"), [(True, GREEN), (False, RED), (None, GREY)])
def test_a_box_lies_where_it_says_in_the_colour_of_its_verdict(ok: bool | None, color: tuple[int, int, int]) -> None:
    """64 pixels are shown eight times as large."""
    image = annotate(grey(3, 64, 64), marks({"text": "", "box": [10, 20, 30, 50], "ok": ok}), value=0.5)
    shown = where(image, color)[: MARGIN + 512]
    assert bounds(shown) == (CORNER + 80, CORNER + 160, CORNER + 240, CORNER + 400)
    assert shown[CORNER + 160 : CORNER + 400, CORNER + 80].all()  # the whole left edge
    assert shown[CORNER + 399, CORNER + 80 : CORNER + 240].all()  # the whole lower edge
    assert not shown[CORNER + 170 : CORNER + 390, CORNER + 90 : CORNER + 230].any()  # and nothing inside
    assert tuple(pixels(image)[CORNER + 300, CORNER + 150]) == (128, 128, 128)


def test_the_picture_itself_is_shown_pixel_by_pixel() -> None:
    media = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = pixels(annotate(media, understood({}), value=1.0))
    shown = image[CORNER : CORNER + 512, CORNER : CORNER + 512]
    expected = (media.permute(1, 2, 0).numpy() * 255).round()
    assert (shown[16::32, 16::32] == expected).all()
    assert (shown == shown[16::32, 16::32].repeat(32, 0).repeat(32, 1)).all()


def test_large_pictures_are_reduced() -> None:
    image = annotate(grey(3, 2560, 1280), marks({"text": "", "box": [256, 512, 1024, 2048], "ok": True}), value=0.0)
    assert 1280 < image.height < 1500
    assert bounds(where(image, GREEN)) == (CORNER + 128, CORNER + 256, CORNER + 512, CORNER + 1024)


def test_a_polygon_follows_its_corners() -> None:
    corners = [(10.0, 40.0), (40.0, 10.0), (50.0, 20.0), (20.0, 50.0)]
    image = annotate(grey(3, 64, 64), marks({"text": "", "polygon": corners, "ok": False}), value=0.0)
    red = where(image, RED)[: MARGIN + 512]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        for share in (0.2, 0.5, 0.8):
            x, y = (round(CORNER + 8 * (a + share * (b - a))) for a, b in ((x0, x1), (y0, y1)))
            assert red[y - 2 : y + 3, x - 2 : x + 3].any()
    inside, outside = pixels(image)[CORNER + 240, CORNER + 240], pixels(image)[CORNER + 100, CORNER + 100]
    assert tuple(outside) == (128, 128, 128)
    assert inside[0] > 128 > inside[1]  # a breath of red


def test_a_marks_text_stands_on_its_colour_by_its_box() -> None:
    def at(box: list[float]) -> tuple[int, int, int, int]:
        bare = annotate(grey(3, 64, 64), marks({"text": "", "box": box, "ok": True}), value=0.0)
        full = annotate(grey(3, 64, 64), marks({"text": "red circle", "box": box, "ok": True}), value=0.0)
        changed = (pixels(bare) != pixels(full)).any(-1)
        assert where(full, GREEN)[changed].mean() > 0.5
        return bounds(changed)

    x0, y0, x1, y1 = at([10, 20, 30, 40])
    assert (x0, y1) == (CORNER + 80, CORNER + 160)  # it stands on the box
    x0, y0, x1, y1 = at([0, 0, 30, 30])
    assert y0 >= CORNER  # no room above: within
    x0, y0, x1, y1 = at([60, 20, 64, 40])
    assert x1 <= CORNER + 512


def test_texts_do_not_cover_each_other() -> None:
    same = [{"text": f"word {i}", "box": [10, 20, 50, 60], "ok": ok} for i, ok in enumerate((True, False, None))]
    image = annotate(grey(3, 64, 64), marks(*same), value=0.0)
    # Each text's ground is some 70 pixels wide; the outlines of the boxes are three.
    solid = [where(image, color)[: MARGIN + 512].sum(1).max() > 40 for color in (GREEN, RED, GREY)]
    assert solid == [True, True, True]


@pytest.mark.parametrize(
    "box", [[-50, -50, 200, 200], [100, 100, 200, 200], [30, 30, 30, 30], [40, 40, 10, 10], [-1e30, 0, 1e30, 1]]
)
def test_boxes_beyond_the_picture(box: list[float]) -> None:
    image = annotate(grey(3, 64, 64), marks({"text": "x", "box": box, "ok": True}), value=0.0)
    x0, y0, x1, y1 = bounds(where(image, GREEN))
    assert min(x0, y0) >= CORNER - 1
    assert max(x1, y1) <= CORNER + 513
    assert not where(image, GREEN)[MARGIN + 515 :].any()


# -- below the picture --------------------------------------------------------------------------------------------


def below(image: Image.Image) -> Image.Image:
    return image.crop((0, MARGIN + 514, image.width, image.height))


def test_clauses_have_a_tick_or_a_cross_each() -> None:
    clauses = [{"text": "one cat: found 1", "ok": True}, {"text": "one dog: found 0", "ok": False}]
    image = below(annotate(grey(3, 8, 8), understood({"clauses": clauses}), prompt="a cat and a dog", value=0.5))
    green, red = bounds(where(image, GREEN)), bounds(where(image, RED))
    assert green[:1] + green[2:3] == red[:1] + red[2:3] == (MARGIN, MARGIN + 18)
    assert green[3] < red[1]  # in their order
    # The disc is of its colour but for the white stroke in it.
    disc = image.crop(green)
    assert 0.4 < where(disc, GREEN).mean() < 0.8
    assert where(disc, (255, 255, 255)).any()


def test_what_could_not_be_scored_says_why() -> None:
    scored = below(annotate(grey(3, 8, 8), understood({}), value=0.25))
    missing = below(annotate(grey(3, 8, 8), understood({"reason": "the lamp is broken"}), value=None))
    assert not where(scored, RED).any()
    assert where(missing, RED).any()
    assert missing.height > scored.height
    assert where(missing, GREY).any()


def test_every_word_of_it_changes_the_picture() -> None:
    base: dict[str, Any] = {"prompt": "a cat", "label": "ocr", "value": 0.5}
    first = annotate(grey(3, 8, 8), understood({}), **base)
    for change in ({"prompt": "a dog"}, {"label": "clip"}, {"value": 0.6}, {"value": None}):
        assert (
            pixels(below(annotate(grey(3, 8, 8), understood({}), **(base | change)))).tolist()
            != pixels(below(first)).tolist()
        )
    assert (pixels(annotate(grey(3, 8, 8), understood({}), **base)) == pixels(first)).all()


NASTY = [
    "日本語 😀 Привет Ä",
    "\ud800 lone",
    "a\0b\nc\td\x1b[31m",
    "x" * 5000,
    "",
    " ",
    "\u202eright to left",
    "\u0301" * 50,
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("own_font", [False, True])
def test_any_text_can_be_drawn(monkeypatch: pytest.MonkeyPatch, text: str, own_font: bool) -> None:
    if own_font:  # as where matplotlib's fonts are not found
        monkeypatch.setattr(annotation, "_font", lambda size, *, bold=False: ImageFont.load_default(size))
    told = understood({
        "marks": [{"text": text, "box": [1, 1, 5, 5]}],
        "clauses": [{"text": text, "ok": True}],
        "reason": text,
    })  # fmt: skip
    image = annotate(grey(3, 8, 8), told, prompt=text, label=text, value=None)
    assert image.width == 514 + 2 * MARGIN
    assert image.height < 1100


def test_long_texts_stay_within_the_picture() -> None:
    told = understood({"clauses": [{"text": "word " * 500, "ok": True}, {"text": "w" * 500, "ok": True}]})
    image = annotate(grey(3, 8, 8), told, prompt="prompt " * 500, label="label" * 50, value=1.0)
    array = pixels(image)
    assert (array[:, :MARGIN] == 255).all()
    assert (array[:, -MARGIN:] == 255).all()
    assert (array[-MARGIN:] == 255).all()


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 3000), (3, 3000, 1), (1, 3, 2, 2)])
def test_pictures_of_any_shape(shape: tuple[int, ...]) -> None:
    image = annotate(grey(*shape), marks({"text": "dot", "box": [0, 0, 1, 1], "ok": True}), value=1.0)
    assert max(image.size) < 1500


def test_broken_pixels_can_be_looked_at() -> None:
    media = grey(3, 8, 8)
    media[0, 0, 0] = torch.nan
    media[1, 0, 0] = torch.inf
    assert tuple(pixels(annotate(media, understood({})))[CORNER, CORNER]) == (0, 255, 128)


# -- videos -------------------------------------------------------------------------------------------------------


def test_the_marked_frames_of_a_video_stand_side_by_side() -> None:
    """Each frame is of another brightness, so that one can be told from the other."""
    video = torch.linspace(0, 1, 11)[:, None, None, None].expand(11, 3, 64, 64)
    told = marks(
        {"text": "", "box": [0, 0, 16, 16], "ok": True, "frame": 2},
        {"text": "", "box": [32, 32, 64, 64], "ok": False, "frame": 7},
        {"text": "", "box": [0, 0, 1, 1], "ok": False, "frame": 99},
    )
    image = annotate(video, told, value=0.5)
    shown = pixels(image)
    side, gap = 320, 2 + 12  # five times as large; two frame lines and the gap
    for column, frame in enumerate((2, 7)):
        centre = CORNER + column * (side + gap) + side // 2
        assert shown[CORNER + side // 4 * 3, centre - side // 4].tolist() == [round(255 * frame / 10)] * 3
    assert bounds(where(image, GREEN)) == (CORNER, CORNER, CORNER + 80, CORNER + 80)
    second = CORNER + side + gap
    assert bounds(where(image, RED)) == (second + 160, CORNER + 160, second + 320, CORNER + 320)


def test_a_video_without_marks_shows_a_few_frames() -> None:
    video = torch.linspace(0, 1, 11)[:, None, None, None].expand(11, 3, 320, 320)
    shown = pixels(annotate(video, understood({}), value=0.5))
    found = [int(shown[CORNER + 100, CORNER + i * 334 + 100, 0]) for i in range(4)]
    assert found == [round(255 * i / 10) for i in (0, 3, 7, 10)]


def test_a_mark_without_a_frame_is_on_each() -> None:
    image = annotate(grey(2, 3, 64, 64), marks({"text": "", "box": [0, 0, 16, 16], "ok": True}), value=0.5)
    green = where(image, GREEN)
    assert green[CORNER, [CORNER, CORNER + 334]].all()


def test_of_very_many_marked_frames_some_are_shown() -> None:
    told = marks(*({"text": "", "box": [0, 0, 9, 9], "frame": i} for i in range(300)))
    image = annotate(grey(300, 3, 16, 16), told, value=0.5)
    assert max(image.size) < 1600


# -- diagnostics that are not as they should be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"marks": None, "clauses": "all fine", "reason": 3},
        {"marks": [{"text": "no place"}, {"text": "two", "box": [0, 0, 1, 1], "polygon": [[0, 0], [1, 1], [2, 0]]}, 7]},
        {"marks": [{"text": "nan", "box": [float("nan"), 0, 1, 1]}], "clauses": [{"text": "no verdict"}, {"ok": True}]},
        {"marks": {"a": 1}, "clauses": {}, "reason": "  "},
    ],
)
def test_what_is_not_in_the_common_form_is_left_out(data: dict[str, Any]) -> None:
    told = understood(data)
    assert (told.marks, told.clauses, told.reason) == ([], [], None)


def test_what_is_in_the_common_form_is_kept_among_what_is_not() -> None:
    told = understood({
        "marks": ({"text": "a", "box": (0, 0, 1, 1)}, {"text": "b"}),
        "clauses": [{"text": "c", "ok": False}, {"class": "cat", "found": 1}],
        "reason": "because",
        "distance": 3,
    })  # fmt: skip
    assert [mark.text for mark in told.marks] == ["a"]
    assert [clause.text for clause in told.clauses] == ["c"]
    assert told.reason == "because"
